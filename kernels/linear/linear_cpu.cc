#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/thread_pool.h"
#include "kernels/linear/dnnl_gemm.h"
#include "kernels/linear/dot_product.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/scratch.h"
#include "kernels/simd/isa.h"

namespace ring::cpu {
namespace {

// Rows that are packed at a time, which bounds the scratch memory.
constexpr int64_t kRowBlock = 256;
// Weight rows per pass where outputs are narrowed on their way out.
constexpr int64_t kNarrowStrip = 4 * kDotRowAlign;

// y[i][n] for n in [n_begin, n_end); y is [rows, weight.rows] of y_dtype.
void StoreProducts(const DotProduct& product, const int32_t* x, int64_t rows,
                   const WeightMatrix& weight, int64_t n_begin, int64_t n_end,
                   DType y_dtype, void* y) {
  if (y_dtype == DType::kFloat32) {
    MultiplyRows(product, x, rows, weight, n_begin, n_end,
                 static_cast<float*>(y) + n_begin, weight.rows);
    return;
  }
  thread_local Scratch scratch;
  float* wide = scratch.Get<float>(rows * kNarrowStrip);
  BFloat16* narrow = static_cast<BFloat16*>(y);
  for (int64_t n = n_begin; n < n_end; n += kNarrowStrip) {
    const int64_t count = std::min(kNarrowStrip, n_end - n);
    MultiplyRows(product, x, rows, weight, n, n + count, wide, count);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < count; ++j) {
        narrow[i * weight.rows + n + j] = ToBFloat16(wide[i * count + j]);
      }
    }
  }
}

// Rows [begin, end) of the same product.
LinearArgs RowsOf(const LinearArgs& args, int64_t begin, int64_t end) {
  LinearArgs part = args;
  part.rows = end - begin;
  part.x =
      static_cast<const char*>(args.x) +
      begin * args.weight.cols * static_cast<int64_t>(SizeOf(args.x_dtype));
  part.y =
      static_cast<char*>(args.y) +
      begin * args.weight.rows * static_cast<int64_t>(SizeOf(args.y_dtype));
  return part;
}

// All rows with the dot kernels.
void DotLinear(const LinearArgs& args, ThreadPool* pool) {
  const WeightMatrix& weight = args.weight;
  const DotProduct product = MakeDotProduct(args.x_dtype, weight);
  const int64_t words = product.layout.packed_words;
  thread_local Scratch scratch;
  int32_t* packed = scratch.Get<int32_t>(
      MaxPackedRows(std::min(args.rows, kRowBlock)) * words);
  for (int64_t row = 0; row < args.rows; row += kRowBlock) {
    const int64_t rows = std::min(kRowBlock, args.rows - row);
    const LinearArgs block = RowsOf(args, row, row + rows);
    PackRows(product, {block.x, args.x_dtype}, rows, packed, pool);
    pool->ParallelFor(
        weight.rows,
        DotGrain(weight.rows, rows * weight.rows * weight.cols, kDotRowAlign),
        [&](int64_t begin, int64_t end) {
          StoreProducts(product, packed, rows, weight, begin, end, args.y_dtype,
                        block.y);
        });
  }
}

// The library's bf16 product where the processor has instructions for it but no
// tiles: with those our kernels are faster, as they leave the weights as they
// lie. Other types take the dot kernels, which never narrow a factor.
bool PrefersLibrary(const LinearArgs& args) {
  return args.x_dtype == DType::kBFloat16 &&
         args.weight.dtype == DType::kBFloat16 && args.weight.cols > 0 &&
         ActiveCpuIsa() == CpuIsa::kAvx512Bf16 &&
         DnnlGemmSupports(DType::kBFloat16);
}

}  // namespace

void Linear(const LinearArgs& args, ThreadPool* pool) {
  RING_CHECK(args.y_dtype == DType::kFloat32 ||
             args.y_dtype == DType::kBFloat16)
      << Name(args.y_dtype);
  if (args.also.rows > 0) {
    Linear(WithoutAlso(args), pool);
    Linear(AlsoOf(args), pool);
    return;
  }
  if (args.rows == 0 || args.weight.rows == 0) return;
  const int64_t prompt_rows = args.rows - args.decode_rows;
  if (prompt_rows >= kDnnlMinRows && PrefersLibrary(args)) {
    const LinearArgs prompt = RowsOf(args, args.decode_rows, args.rows);
    DnnlGemmArgs gemm;
    gemm.x = prompt.x;
    gemm.rows = prompt_rows;
    gemm.weight = args.weight;
    gemm.y = prompt.y;
    gemm.y_dtype = args.y_dtype;
    if (DnnlGemm(gemm, pool)) {
      DotLinear(RowsOf(args, 0, args.decode_rows), pool);
      return;
    }
  }
  DotLinear(args, pool);
}

const char* LinearIsaName() { return Name(ActiveCpuIsa()); }

}  // namespace ring::cpu
