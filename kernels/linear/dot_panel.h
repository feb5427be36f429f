// The inner kernels of every linear map on the CPU: dot products of packed
// activation rows with weight rows. One template (dot_panel_inl.h) is compiled
// once per instruction set; this header is the seam between those files and
// the rest.
//
// The order in which one output (row, weight row) is summed is fixed by the
// layout alone: vector lane l takes the columns of its residue, the lanes of a
// block of columns are added in a fixed tree, blocks are added in order. It
// does not depend on how many rows are computed together, on the tile shape or
// on the thread, so the bits of a row are the same in any batch.
#pragma once

#include <cstdint>

#include "kernels/linear/weight_matrix.h"

namespace ring {

// How the columns of a product are cut. Columns form segments (of one scale
// column each, for FP8), segments form blocks. A packed row holds every segment
// padded with zeros to whole groups: the columns that the inner loop takes in
// one step.
struct DotLayout {
  int64_t cols = 0;
  int64_t segments = 0;
  int64_t first_segment = 0;  // columns of segment 0
  int64_t segment = 0;        // columns of the others; the last may have fewer
  int64_t block_segments = 0;
  // 32-bit words of a packed row: of segment 0, of any other whole segment, of
  // all.
  int64_t first_words = 0;
  int64_t segment_words = 0;
  int64_t packed_words = 0;
};

// out[i * out_stride + n - n_begin] = x_i . w_n for 0 <= i < rows and
// n_begin <= n < n_end. Reads no byte of `weight` outside those rows.
struct DotPanelArgs {
  const DotLayout* layout = nullptr;
  const int32_t* x = nullptr;  // the packed block of all rows
  int64_t rows = 0;
  const WeightMatrix* weight = nullptr;
  int64_t n_begin = 0;
  int64_t n_end = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  // Where weights are decoded once for many rows: DotScratchFloats(layout).
  float* scratch = nullptr;
};

// Decoded weight rows: as many as fit about half of the second-level cache, a
// few at least. The padding keeps rows off each other's cache sets.
inline constexpr int64_t kDecodedPad = 16;
inline constexpr int64_t kDecodedFloats = 64 * 1024;
inline constexpr int64_t kMinDecodedRows = 6;
constexpr int64_t DotScratchFloats(const DotLayout& layout) {
  const int64_t few = kMinDecodedRows * (layout.packed_words + kDecodedPad);
  return few > kDecodedFloats ? few : kDecodedFloats;
}

inline constexpr int kMaxBlockRows = 16;

// One pair of activation and weight types on one instruction set.
struct DotKernel {
  int group_cols = 0;   // columns of a group
  int group_words = 0;  // 32-bit words that hold them in a packed row
  // Rows that are packed as one, interleaved; a block of one row is not.
  int block_rows = 1;
  // Fills rows * layout.packed_words words from `rows` rows of layout.cols
  // elements each. `rows` is block_rows, or 1 for a block of one row.
  void (*pack)(const DotLayout& layout, const void* const* x, int64_t rows,
               DType x_dtype, int32_t* packed) = nullptr;
  void (*panel)(const DotPanelArgs& args) = nullptr;
};

// The kernels of one instruction set.
struct DotKernels {
  DotKernel f32;   // fp32 weights; activations are widened to fp32
  DotKernel bf16;  // bf16 weights, likewise
  DotKernel fp8;   // block-FP8 weights, likewise
  // bf16 weights times bf16 activations in one instruction; panel is null
  // where there is none, and `bf16` serves.
  DotKernel bf16_pairs;
};

// Defined in dot_panel_<isa>.cc. The x86 ones exist on x86-64 builds only.
extern const DotKernels kPortableDotKernels;
extern const DotKernels kAvx2DotKernels;
extern const DotKernels kAvx512DotKernels;
extern const DotKernels kAvx512Bf16DotKernels;
extern const DotKernels kAmxBf16DotKernels;

}  // namespace ring
