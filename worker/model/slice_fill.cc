#include "worker/model/slice_fill.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/check.h"

namespace ring {
namespace {

SliceRange Intersect(const SliceRange& a, const SliceRange& b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

}  // namespace

void Widen(const std::byte* source, DType dtype, int64_t count, float* out) {
  if (dtype == DType::kFloat32) {
    std::memcpy(out, source, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  RING_CHECK(dtype == DType::kBFloat16) << Name(dtype);
  for (int64_t i = 0; i < count; ++i) {
    BFloat16 value;
    std::memcpy(&value, source + i * int64_t{sizeof(value)}, sizeof(value));
    out[i] = ToFloat(value);
  }
}

int64_t CountBlockRows(const TensorSlice& slice) {
  return (slice.rows.end + kScaleBlock - 1) / kScaleBlock -
         slice.rows.begin / kScaleBlock;
}

SliceSource BlockRowSource(const TensorSlice& slice, int64_t begin,
                           int64_t end) {
  const SliceSource all = SourceOf(slice);
  const SliceRange rows = {all.rows.begin + begin * kScaleBlock,
                           all.rows.begin + end * kScaleBlock};
  return {Intersect(all.rows, rows), all.cols};
}

QuantizeBlocksArgs BlockRowQuantization(const TensorSlice& slice, int64_t begin,
                                        int64_t end, const void* source,
                                        std::byte* memory) {
  const SliceSource window = BlockRowSource(slice, begin, end);
  const SliceRange kept = Intersect(window.rows, slice.rows);
  const int64_t block_cols =
      (window.cols.size() + kScaleBlock - 1) / kScaleBlock;
  QuantizeBlocksArgs args;
  args.x = source;
  args.x_dtype = *ToDType(slice.tensor->dtype);
  args.rows = window.rows.size();
  args.cols = window.cols.size();
  args.row_begin = kept.begin - window.rows.begin;
  args.row_end = kept.end - window.rows.begin;
  args.col_begin = slice.cols.begin - window.cols.begin;
  args.col_end = slice.cols.end - window.cols.begin;
  args.q = reinterpret_cast<Float8E4M3*>(memory + slice.dest) +
           (kept.begin - slice.rows.begin) * slice.cols.size();
  args.scales =
      reinterpret_cast<float*>(memory + slice.scale_dest) + begin * block_cols;
  return args;
}

}  // namespace ring
