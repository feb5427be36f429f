// The last step of the experts' kernels for decode rows: the sum over slots.
#pragma once

#include <cstdint>

#include "kernels/norm/residual_norm.h"

namespace ring::cuda {

class Stream;

// sum[r] = over slots, in order, of weights[r][slot] * z[place], then
// + z_shared[r - shared_begin] for the shared rows. It goes to y, or is the
// part that `norm` adds to the residual stream.
struct CombineArgs {
  const float* z = nullptr;         // [units, hidden]
  const float* z_shared = nullptr;  // [shared rows, hidden]
  // [rows * top_k] of units in z, -1: no expert. Null: unit u is at u, and has
  // an expert if experts[u] >= 0.
  const int32_t* place_of = nullptr;
  const int32_t* experts = nullptr;
  const float* weights = nullptr;  // [rows, top_k]
  int64_t rows = 0;
  int hidden = 0;  // a multiple of 4
  int top_k = 0;   // 0: the shared rows alone
  int64_t shared_begin = 0;
  int64_t shared_rows = 0;
  float* y = nullptr;  // [rows, hidden]
  bool accumulate = false;
  const ResidualNormArgs* norm = nullptr;  // its rows; TakesNorm(*norm)
};
void CombineSlots(const CombineArgs& args, Stream* stream);
bool TakesNorm(const ResidualNormArgs& norm);

}  // namespace ring::cuda
