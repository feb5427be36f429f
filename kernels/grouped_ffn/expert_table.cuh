// The weights of all experts as a kernel parameter, so that no table has to be
// kept on the device: pointers differ by expert, shapes do not.
#pragma once

#include "absl/types/span.h"
#include "kernels/base/check.h"
#include "kernels/grouped_ffn/grouped_ffn.h"

namespace ring::cuda {

// Kernel parameters may take 32,764 bytes; kernels take at most two tables.
inline constexpr int kMaxExperts = 512;

struct ExpertTable {
  WeightMatrix shape;  // of every expert; its pointers are unused
  const void* data[kMaxExperts];
  const float* scales[kMaxExperts];
  const int32_t* row_scale[kMaxExperts];

  __device__ WeightMatrix At(int expert) const {
    WeightMatrix w = shape;
    w.data = data[expert];
    w.scales = scales[expert];
    w.row_scale = row_scale[expert];
    return w;
  }
};
static_assert(2 * sizeof(ExpertTable) < 32000);

// `member`: &GatedMlpWeights::gate, up or down.
inline ExpertTable MakeExpertTable(absl::Span<const GatedMlpWeights> experts,
                                   WeightMatrix GatedMlpWeights::*member) {
  RING_CHECK_LE(experts.size(), size_t{kMaxExperts});
  ExpertTable table;
  table.shape = experts[0].*member;
  for (size_t e = 0; e < experts.size(); ++e) {
    const WeightMatrix& w = experts[e].*member;
    RING_CHECK(w.dtype == table.shape.dtype && w.rows == table.shape.rows &&
               w.cols == table.shape.cols &&
               w.row_stride == table.shape.row_stride &&
               w.scale_cols == table.shape.scale_cols &&
               w.scale_col_offset == table.shape.scale_col_offset)
        << "expert " << e;
    table.data[e] = w.data;
    table.scales[e] = w.scales;
    table.row_scale[e] = w.row_scale;
  }
  return table;
}

}  // namespace ring::cuda
