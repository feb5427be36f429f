// The weights of all experts as a kernel parameter: those of one kind lie at
// equal distances, as the shard's memory plan places them, so three strides
// stand for all pointers.
#pragma once

#include "absl/types/span.h"
#include "kernels/base/check.h"
#include "kernels/grouped_ffn/grouped_ffn.h"

namespace ring::cuda {

inline constexpr int kMaxExperts = 512;

struct ExpertTable {
  WeightMatrix shape;  // of every expert; its pointers are expert 0's
  // Bytes from one expert to the next.
  int64_t data_stride = 0;
  int64_t scales_stride = 0;
  int64_t row_scale_stride = 0;

  __host__ __device__ WeightMatrix At(int expert) const {
    WeightMatrix w = shape;
    w.data = static_cast<const char*>(w.data) + expert * data_stride;
    w.scales = reinterpret_cast<const float*>(
        reinterpret_cast<uintptr_t>(w.scales) + expert * scales_stride);
    w.row_scale = reinterpret_cast<const int32_t*>(
        reinterpret_cast<uintptr_t>(w.row_scale) + expert * row_scale_stride);
    return w;
  }
};

// `member`: &GatedMlpWeights::gate, up or down. At least one expert.
inline ExpertTable MakeExpertTable(absl::Span<const GatedMlpWeights> experts,
                                   WeightMatrix GatedMlpWeights::*member) {
  const auto bytes_between = [](const void* from, const void* to) {
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) -
                                reinterpret_cast<uintptr_t>(from));
  };
  RING_CHECK_LE(experts.size(), size_t{kMaxExperts});
  ExpertTable table;
  const WeightMatrix& first = experts[0].*member;
  table.shape = first;
  if (experts.size() > 1) {
    const WeightMatrix& second = experts[1].*member;
    table.data_stride = bytes_between(first.data, second.data);
    table.scales_stride = bytes_between(first.scales, second.scales);
    table.row_scale_stride = bytes_between(first.row_scale, second.row_scale);
  }
  for (size_t e = 0; e < experts.size(); ++e) {
    const WeightMatrix& w = experts[e].*member;
    RING_CHECK(w.dtype == first.dtype && w.rows == first.rows &&
               w.cols == first.cols && w.row_stride == first.row_stride &&
               w.scale_cols == first.scale_cols &&
               w.scale_col_offset == first.scale_col_offset)
        << "expert " << e << " has another shape";
    const WeightMatrix expected = table.At(static_cast<int>(e));
    RING_CHECK(w.data == expected.data && w.scales == expected.scales &&
               w.row_scale == expected.row_scale)
        << "expert " << e << " lies at another distance";
  }
  return table;
}

}  // namespace ring::cuda
