// The packaged matrix product (oneDNN) for blocks of prompt rows. The only
// place that knows the library; a build without it has the same functions,
// which then say that nothing is supported.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/linear/weight_matrix.h"

namespace ring {

class ThreadPool;

// y = x W^T, with x and the weights of one type, bf16 or fp32. Weights are
// taken as they lie, so there is one copy of them.
struct DnnlGemmArgs {
  const void* x = nullptr;  // [rows, weight.cols] of weight.dtype
  int64_t rows = 0;         // >= kDnnlMinRows
  WeightMatrix weight;
  void* y = nullptr;  // [rows, weight.rows] of y_dtype
  DType y_dtype = DType::kFloat32;
};

// Fewer rows than this are not worth the library's rearranging of the weights.
inline constexpr int64_t kDnnlMinRows = 64;

// Whether the library is built in and has vector code for products of this
// type on this processor; fp32 and bf16 only. Thread-safe.
bool DnnlGemmSupports(DType dtype);

// REQUIRES: DnnlGemmSupports(args.weight.dtype). Runs on the pool's threads,
// one library call per thread at a time, so the library starts no threads of
// its own. False if the library failed, which is logged; y is then undefined.
bool DnnlGemm(const DnnlGemmArgs& args, ThreadPool* pool);

}  // namespace ring
