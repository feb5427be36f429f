// SwiGLU feed-forward blocks: one dense block, or many experts over rows that
// chose them.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/base/dtype.h"
#include "kernels/linear/weight_matrix.h"

namespace ring {

class ThreadPool;
struct ResidualNormArgs;

// down(silu(gate(x)) * up(x))
struct GatedMlpWeights {
  WeightMatrix gate;  // [inter, hidden]
  WeightMatrix up;    // [inter, hidden]
  WeightMatrix down;  // [hidden, inter]
};

struct DenseFfnArgs {
  const void* x = nullptr;  // [rows, hidden] bf16 or fp32
  DType x_dtype = DType::kFloat32;
  int64_t rows = 0;
  int64_t decode_rows = 0;  // as in LinearArgs
  GatedMlpWeights weights;
  float* y = nullptr;       // [rows, hidden] fp32
  bool accumulate = false;  // y += instead of y =
  // DenseFfnWorkspaceBytes(rows, inter, x_dtype)
  void* workspace = nullptr;
};

// The inner activation is rounded to x_dtype between the two products. On a GPU
// prompt rows of bf16 meet e4m3 weights as e4m3 themselves, with one scale per
// row and 128 columns, and so does their inner activation, if the matrices are
// large enough (linear/tensor_gemm.h).
//
// Rows that pass at a time: what the workspace has room for.
inline constexpr int64_t kDenseFfnRows = 8192;
int64_t DenseFfnWorkspaceBytes(int64_t rows, int64_t inter, DType x_dtype);

// y[r] = sum over slots j, in slot order, with local_experts[r][j] >= 0 of
//        weights[r][j] * expert_{local_experts[r][j]}(x[r])
// Only experts that some row chose are read. With `shared` set, the rows
// [shared_begin, shared_begin + shared_rows) then get shared(x[r]) added. On a
// GPU many rows of bf16 are quantised as in DenseFfn, and each expert's result
// for a row is rounded to bf16.
struct GroupedFfnArgs {
  const void* x = nullptr;  // [rows, hidden] bf16 or fp32
  DType x_dtype = DType::kFloat32;
  int64_t rows = 0;
  int top_k = 1;
  const int32_t* local_experts = nullptr;  // [rows, top_k], -1: not here
  const float* weights = nullptr;          // [rows, top_k]
  // All of equal shape; on a GPU also at equal distances, data as scales.
  absl::Span<const GatedMlpWeights> experts;
  int64_t hidden = 0;
  const GatedMlpWeights* shared = nullptr;
  int64_t shared_begin = 0;
  int64_t shared_rows = 0;
  int64_t shared_decode_rows = 0;  // of the shared rows, as in LinearArgs
  float* y = nullptr;  // [rows, hidden] fp32, overwritten (zero if no expert)
  // If set, y becomes the one part of this ResidualNorm, of which residual,
  // norm_weight, eps, normed and normed_dtype count, and is scratch.
  const ResidualNormArgs* norm = nullptr;
  // The larger of GroupedFfnWorkspaceBytes(rows, top_k, hidden, inter, x_dtype,
  // num_experts) and DenseFfnWorkspaceBytes of the shared rows
  void* workspace = nullptr;
};

// The shared expert's part of args as a call of its own.
inline DenseFfnArgs SharedFfn(const GroupedFfnArgs& args) {
  const int64_t first = args.shared_begin * args.hidden;
  DenseFfnArgs dense;
  dense.x = static_cast<const char*>(args.x) +
            first * static_cast<int64_t>(SizeOf(args.x_dtype));
  dense.x_dtype = args.x_dtype;
  dense.rows = args.shared_rows;
  dense.decode_rows = args.shared_decode_rows;
  dense.weights = *args.shared;
  dense.y = args.y + first;
  dense.accumulate = true;
  dense.workspace = args.workspace;
  return dense;
}

// args.norm with y as its part.
ResidualNormArgs NormOf(const GroupedFfnArgs& args);

int64_t GroupedFfnWorkspaceBytes(int64_t rows, int top_k, int64_t hidden,
                                 int64_t inter, DType x_dtype,
                                 int64_t num_experts);

namespace cpu {
void DenseFfn(const DenseFfnArgs& args, ThreadPool* pool);
void GroupedFfn(const GroupedFfnArgs& args, ThreadPool* pool);
}  // namespace cpu
namespace cuda {
class Stream;
void DenseFfn(const DenseFfnArgs& args, Stream* stream);
void GroupedFfn(const GroupedFfnArgs& args, Stream* stream);
}  // namespace cuda

}  // namespace ring
