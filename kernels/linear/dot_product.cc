#include "kernels/linear/dot_product.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/thread_pool.h"
#include "kernels/linear/scratch.h"

namespace ring {
namespace {

// Columns of one block: activations of a few rows stay in the first-level
// cache while weight rows pass.
constexpr int64_t kBlockCols = 1024;
// Fewer multiply-adds than this take about as long as waking a thread.
constexpr int64_t kGrainMacs = 64 * 1024;
constexpr int64_t kPackGrainElements = 64 * 1024;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

const DotKernels& KernelsOf(CpuIsa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case CpuIsa::kPortable:
      break;
    case CpuIsa::kAvx2:
      return kAvx2DotKernels;
    case CpuIsa::kAvx512:
      return kAvx512DotKernels;
    case CpuIsa::kAvx512Bf16:
      return kAvx512Bf16DotKernels;
    case CpuIsa::kAmxBf16:
      return kAmxBf16DotKernels;
  }
#else
  RING_CHECK(isa == CpuIsa::kPortable) << Name(isa);
#endif
  return kPortableDotKernels;
}

const DotKernel& KernelOf(const DotKernels& kernels, DType x_dtype,
                          DType weight_dtype) {
  switch (weight_dtype) {
    case DType::kFloat8E4M3:
      return kernels.fp8;
    case DType::kBFloat16:
      return x_dtype == DType::kBFloat16 && kernels.bf16_pairs.panel != nullptr
                 ? kernels.bf16_pairs
                 : kernels.bf16;
    case DType::kFloat32:
      break;
    case DType::kInt32:
      RING_CHECK(false) << "weights of type i32";
  }
  return kernels.f32;
}

}  // namespace

DotProduct MakeDotProduct(DType x_dtype, const WeightMatrix& weight,
                          CpuIsa isa) {
  RING_CHECK(x_dtype == DType::kBFloat16 || x_dtype == DType::kFloat32)
      << Name(x_dtype);
  DotProduct product;
  product.kernel = &KernelOf(KernelsOf(isa), x_dtype, weight.dtype);
  const DotKernel& kernel = *product.kernel;
  DotLayout& layout = product.layout;
  layout.cols = weight.cols;
  int64_t first = kBlockCols;
  layout.segment = kBlockCols;
  layout.block_segments = 1;
  if (weight.dtype == DType::kFloat8E4M3) {
    first = kScaleBlock - weight.scale_col_offset % kScaleBlock;
    layout.segment = kScaleBlock;
    layout.block_segments = kBlockCols / kScaleBlock;
  }
  layout.first_segment = std::min(first, weight.cols);
  const int64_t others =
      CeilDiv(weight.cols - layout.first_segment, layout.segment);
  layout.segments = weight.cols == 0 ? 0 : 1 + others;
  const auto words = [&](int64_t cols) {
    return CeilDiv(cols, kernel.group_cols) * kernel.group_words;
  };
  layout.first_words = words(layout.first_segment);
  layout.segment_words = words(layout.segment);
  layout.packed_words = layout.first_words;
  if (others > 0) {
    const int64_t last =
        weight.cols - layout.first_segment - (others - 1) * layout.segment;
    layout.packed_words += (others - 1) * layout.segment_words + words(last);
  }
  RING_CHECK_LE(layout.packed_words, MaxPackedWords(weight.cols));
  return product;
}

int64_t PackedRows(const DotProduct& product, int64_t rows) {
  return rows <= 1 ? rows : RoundUp(rows, product.kernel->block_rows);
}

void PackRows(const DotProduct& product, const RowSource& source, int64_t rows,
              int32_t* packed, ThreadPool* pool) {
  const DotLayout& layout = product.layout;
  const char* const x = static_cast<const char*>(source.x);
  const int64_t row_bytes =
      layout.cols * static_cast<int64_t>(SizeOf(source.dtype));
  const int64_t step = rows == 1 ? 1 : product.kernel->block_rows;
  const auto pack = [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * step; row < end * step; row += step) {
      const void* from[kMaxBlockRows];
      for (int64_t i = 0; i < step; ++i) {
        // Rows that are missing are stand-ins, computed and dropped.
        const int64_t r = std::min(row + i, rows - 1);
        from[i] = x + (source.index ? source.index[r] : r) * row_bytes;
      }
      product.kernel->pack(layout, from, step, source.dtype,
                           packed + row * layout.packed_words);
    }
  };
  const int64_t blocks = CeilDiv(rows, step);
  if (pool == nullptr) {
    pack(0, blocks);
    return;
  }
  pool->ParallelFor(blocks, kPackGrainElements / (step * (layout.cols + 1)) + 1,
                    pack);
}

void MultiplyRows(const DotProduct& product, const int32_t* packed,
                  int64_t rows, const WeightMatrix& weight, int64_t n_begin,
                  int64_t n_end, float* out, int64_t out_stride) {
  if (rows == 0) return;
  DotPanelArgs args;
  args.layout = &product.layout;
  args.x = packed;
  args.rows = rows;
  args.weight = &weight;
  args.n_begin = n_begin;
  args.n_end = n_end;
  args.out = out;
  args.out_stride = out_stride;
  thread_local Scratch scratch;
  args.scratch = scratch.Get<float>(DotScratchFloats(product.layout));
  product.kernel->panel(args);
}

int64_t DotGrain(int64_t items, int64_t macs, int64_t align) {
  if (items == 0) return align;
  const int64_t macs_per_item = macs / items + 1;
  return RoundUp(CeilDiv(kGrainMacs, macs_per_item), align);
}

}  // namespace ring
