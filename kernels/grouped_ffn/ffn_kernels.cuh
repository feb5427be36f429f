// The two products of a SwiGLU block, for one expert or many.
//
// A unit is one use of one expert by one row: (row, slot) of GroupedFfnArgs,
// or a row of DenseFfnArgs, which has one slot and one expert. Unit u belongs
// to row u / top_k.
#pragma once

#include "kernels/grouped_ffn/grouped_ffn.h"
#include "kernels/norm/residual_norm.h"

namespace ring::cuda {

class Stream;

struct FfnUnits {
  const void* x = nullptr;  // [rows, hidden]
  DType x_dtype = DType::kFloat32;
  int64_t rows = 0;
  int top_k = 1;
  const int32_t* experts = nullptr;            // [rows, top_k], null: all 0
  const float* weights = nullptr;              // [rows, top_k], null: all 1
  absl::Span<const GatedMlpWeights> matrices;  // by expert, of equal shape
  // [rows * top_k, inter] of x_dtype; TileFfn with experts: a PromptWorkspace.
  void* h = nullptr;
  float* y = nullptr;       // [rows, hidden]
  bool accumulate = false;  // y += instead of y =
  // DecodeFfn only, which then takes no experts too: adds shared(x[r]) to rows
  // [shared_begin, shared_begin + shared_rows), after the slots.
  const GatedMlpWeights* shared = nullptr;
  int64_t shared_begin = 0;
  int64_t shared_rows = 0;
  // DecodeFfn and WideFfn only: adds the results to this residual stream
  // instead of writing y. TakesNorm(*norm).
  const ResidualNormArgs* norm = nullptr;
};

// The rows [begin, ...) of `norm`, or null for null; `rows` keeps them.
inline const ResidualNormArgs* NormFrom(const ResidualNormArgs* norm,
                                        int64_t begin, ResidualNormArgs* rows) {
  if (norm == nullptr) return nullptr;
  *rows = *norm;
  rows->residual += begin * norm->cols;
  rows->normed =
      static_cast<char*>(norm->normed) +
      begin * norm->cols * static_cast<int64_t>(SizeOf(norm->normed_dtype));
  return rows;
}

// Streams every touched expert's weights to tensor cores, once for up to 8 or
// 16 of its rows. Scratch takes the place of `h`; a dense block is a shared
// expert without others. For few rows of bf16; a row's bits do not depend on
// the other rows.
void DecodeFfn(const FfnUnits& units, Stream* stream);
// Whether DecodeFfn takes these types and shapes.
bool DecodeFfnSupports(const FfnUnits& units);

// As DecodeFfn for experts and more rows, with block-FP8 weights: once for up
// to 64 rows of an expert.
void WideFfn(const FfnUnits& units, Stream* stream);
// Whether WideFfn takes these types and shapes.
bool WideFfnSupports(const FfnUnits& units);

// Streams the experts' weights once per unit; units of one expert are meant to
// meet in L2. Any types, any sizes.
void StreamFfn(const FfnUnits& units, Stream* stream);

// Tiles on tensor cores, for many rows of bf16. e4m3 weights meet activations
// of e4m3 where TensorGemm suits the matrices.
void TileFfn(const FfnUnits& units, Stream* stream);
// Whether TileFfn takes these types.
bool TileFfnSupports(const FfnUnits& units);

}  // namespace ring::cuda
