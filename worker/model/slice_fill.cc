#include "worker/model/slice_fill.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/base/check.h"

namespace ring {
namespace {

constexpr float kFloat8Max = 448;
constexpr float kMinAmax = 1e-4f;

SliceRange Intersect(const SliceRange& a, const SliceRange& b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

// fp32 values of the rectangle rows x cols of a tensor.
struct Window {
  const float* values;
  SliceRange rows;
  SliceRange cols;
  float at(int64_t row, int64_t col) const {
    return values[(row - rows.begin) * cols.size() + (col - cols.begin)];
  }
};

// Quantises the block of window.rows x block_cols and returns its scale.
// `out` is the slice's [rows, cols]; what lies outside of it only counts for
// the scale.
float QuantizeBlock(const TensorSlice& slice, const Window& window,
                    const SliceRange& block_cols, Float8E4M3* out) {
  float amax = kMinAmax;
  for (int64_t row = window.rows.begin; row < window.rows.end; ++row) {
    for (int64_t col = block_cols.begin; col < block_cols.end; ++col) {
      amax = std::max(amax, std::fabs(window.at(row, col)));
    }
  }
  const float scale = amax / kFloat8Max;
  const SliceRange rows = Intersect(window.rows, slice.rows);
  const SliceRange cols = Intersect(block_cols, slice.cols);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    for (int64_t col = cols.begin; col < cols.end; ++col) {
      out[(row - slice.rows.begin) * slice.cols.size() +
          (col - slice.cols.begin)] = ToFloat8E4M3(window.at(row, col) / scale);
    }
  }
  return scale;
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

void QuantizeBlockRows(const TensorSlice& slice, int64_t begin, int64_t end,
                       const std::byte* source, std::byte* memory) {
  const DType dtype = *ToDType(slice.tensor->dtype);
  const SliceRange cols = SourceOf(slice).cols;
  const int64_t block_cols = (cols.size() + kScaleBlock - 1) / kScaleBlock;
  auto* out = reinterpret_cast<Float8E4M3*>(memory + slice.dest);
  auto* scales = reinterpret_cast<float*>(memory + slice.scale_dest);
  std::vector<float> values;  // the rows of one block row, in fp32
  for (int64_t block_row = begin; block_row < end; ++block_row) {
    const SliceRange rows =
        BlockRowSource(slice, block_row, block_row + 1).rows;
    const int64_t count = rows.size() * cols.size();
    values.resize(static_cast<size_t>(count));
    Widen(source, dtype, count, values.data());
    source += count * static_cast<int64_t>(SizeOf(dtype));
    for (int64_t block = 0; block < block_cols; ++block) {
      const SliceRange block_range =
          Intersect(cols, {cols.begin + block * kScaleBlock,
                           cols.begin + (block + 1) * kScaleBlock});
      scales[block_row * block_cols + block] =
          QuantizeBlock(slice, {values.data(), rows, cols}, block_range, out);
    }
  }
}

}  // namespace ring
