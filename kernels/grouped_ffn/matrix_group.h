// One of the three matrices of every expert as a MatrixGroup.
#pragma once

#include "absl/types/span.h"
#include "kernels/grouped_ffn/grouped_ffn.h"
#include "kernels/linear/tensor_gemm.h"

namespace ring::cuda {

// `member`: &GatedMlpWeights::gate, up or down. False unless the experts, all
// of equal shape, follow each other at equal distances, which have to be
// multiples of 16 bytes.
inline bool MakeMatrixGroup(absl::Span<const GatedMlpWeights> experts,
                            WeightMatrix GatedMlpWeights::*member,
                            MatrixGroup* group) {
  const WeightMatrix& first = experts[0].*member;
  const auto bytes = [](const void* from, const void* to) {
    return static_cast<const char*>(to) - static_cast<const char*>(from);
  };
  group->first = first;
  group->count = static_cast<int64_t>(experts.size());
  if (experts.size() == 1) return true;
  const WeightMatrix& second = experts[1].*member;
  group->data_stride = bytes(first.data, second.data);
  const int64_t scales_stride = bytes(first.scales, second.scales);
  const int64_t row_scale_stride = bytes(first.row_scale, second.row_scale);
  group->scales_stride = scales_stride / int64_t{sizeof(float)};
  group->row_scale_stride = row_scale_stride / int64_t{sizeof(int32_t)};
  if (group->data_stride <= 0 || group->data_stride % 16 != 0) return false;
  for (size_t e = 0; e < experts.size(); ++e) {
    const WeightMatrix& w = experts[e].*member;
    const int64_t i = static_cast<int64_t>(e);
    if (bytes(first.data, w.data) != i * group->data_stride ||
        bytes(first.scales, w.scales) != i * scales_stride ||
        bytes(first.row_scale, w.row_scale) != i * row_scale_stride) {
      return false;
    }
  }
  return true;
}

}  // namespace ring::cuda
