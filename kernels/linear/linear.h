// y = x W^T: the linear maps of attention and of the head.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/linear/weight_matrix.h"

namespace ring {

class ThreadPool;

struct LinearArgs {
  const void* x = nullptr;  // [rows, weight.cols] bf16 or fp32
  DType x_dtype = DType::kFloat32;
  int64_t rows = 0;
  // The first `decode_rows` rows take the streaming kernel, whose bits for a
  // row do not depend on the other rows; the rest may take a library's GEMM.
  int64_t decode_rows = 0;
  WeightMatrix weight;              // [out, in]
  void* y = nullptr;                // [rows, weight.rows], may not overlap x
  DType y_dtype = DType::kFloat32;  // fp32, or bf16 rounded once at the end

  // Another matrix for the same rows: also_y = x also^T, as a second call would
  // give it but for the order of additions. Empty: none. Decode rows may take
  // one launch for both.
  WeightMatrix also;       // [also out, in]
  void* also_y = nullptr;  // [rows, also.rows] of y_dtype
};

// The two halves as calls of their own.
inline LinearArgs WithoutAlso(const LinearArgs& args) {
  LinearArgs first = args;
  first.also = {};
  first.also_y = nullptr;
  return first;
}
inline LinearArgs AlsoOf(const LinearArgs& args) {
  LinearArgs second = WithoutAlso(args);
  second.weight = args.also;
  second.y = args.also_y;
  return second;
}

// Products accumulate in fp32. bf16 x bf16 products are exact; fp8 weights are
// decoded and scaled per 128 columns in fp32. bf16 activations against fp8
// weights are widened, never narrowed; except on a GPU for prompt rows of large
// matrices, which are rounded to e4m3 with one scale per row and 128 columns
// (tensor_gemm.h).
namespace cpu {
void Linear(const LinearArgs& args, ThreadPool* pool);
// The instruction set that the streaming kernels use here, as
// Name(ActiveCpuIsa()).
const char* LinearIsaName();
}  // namespace cpu
namespace cuda {
class Stream;
void Linear(const LinearArgs& args, Stream* stream);
}  // namespace cuda

}  // namespace ring
