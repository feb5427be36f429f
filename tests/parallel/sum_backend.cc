#include "tests/parallel/sum_backend.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/norm/residual_norm.h"

namespace ring {
namespace {

class VectorBuffer final : public DeviceBuffer {
 public:
  explicit VectorBuffer(int64_t bytes) : bytes_(bytes), memory_(bytes + 256) {}
  void* data() override {
    const auto at = reinterpret_cast<uintptr_t>(memory_.data());
    return memory_.data() + (256 - at % 256) % 256;
  }
  int64_t bytes() const override { return bytes_; }

 private:
  const int64_t bytes_;
  std::vector<char> memory_;
};

float Load(const void* values, DType dtype, int64_t i) {
  return dtype == DType::kBFloat16
             ? ToFloat(static_cast<const BFloat16*>(values)[i])
             : static_cast<const float*>(values)[i];
}

class SumBackend final : public Backend {
 public:
  const char* description() const override { return "sums only"; }
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> Allocate(
      int64_t bytes) override {
    return std::make_unique<VectorBuffer>(bytes);
  }
  void CopyToDevice(void* to, const void* from, int64_t bytes) override {
    Copy(to, from, bytes);
  }
  void CopyToHost(void* to, const void* from, int64_t bytes) override {
    Copy(to, from, bytes);
  }
  void Copy(void* to, const void* from, int64_t bytes) override {
    std::memcpy(to, from, bytes);
  }
  void Zero(void* device, int64_t bytes) override {
    std::memset(device, 0, bytes);
  }
  void Synchronize() override {}
  void Use(Queue) override {}
  void WaitFor(Queue, Queue) override {}
  void RunStep(int, absl::FunctionRef<void()> fn) override { fn(); }

  void ResidualNorm(const ResidualNormArgs& args) override {
    for (int64_t r = 0; r < args.rows; ++r) {
      float* const row = args.residual + r * args.cols;
      for (int p = 0; p < args.num_parts; ++p) {
        const float scale = Scale(args, p, r);
        for (int64_t c = 0; c < args.cols; ++c) {
          row[c] += scale * Load(args.parts, args.parts_dtype,
                                 p * args.part_stride + r * args.cols + c);
        }
      }
      if (args.norm_weight != nullptr) Norm(args, r);
    }
  }

  void Embedding(const EmbeddingArgs&) override { Unused(); }
  void GatherRows(const GatherRowsArgs&) override { Unused(); }
  void LocalExperts(const LocalExpertsArgs&) override { Unused(); }
  void ScatterInts(const ScatterIntsArgs&) override { Unused(); }
  void RopeTable(const RopeTableArgs&) override { Unused(); }
  void Linear(const LinearArgs&) override { Unused(); }
  void PagedAttention(const PagedAttentionArgs&) override { Unused(); }
  void LightningAttention(const LightningAttentionArgs&) override { Unused(); }
  void MoeRouting(const MoeRoutingArgs&) override { Unused(); }
  void DenseFfn(const DenseFfnArgs&) override { Unused(); }
  void GroupedFfn(const GroupedFfnArgs&) override { Unused(); }
  void LogitStats(const LogitStatsArgs&) override { Unused(); }
  void MergeStats(const MergeStatsArgs&) override { Unused(); }
  void ThresholdHistogram(const ThresholdHistogramArgs&) override { Unused(); }
  void NarrowThreshold(const NarrowThresholdArgs&) override { Unused(); }
  void DrawTokens(const DrawTokensArgs&) override { Unused(); }
  void FinishTokens(const FinishTokensArgs&) override { Unused(); }

 private:
  static void Unused() { RING_CHECK(false) << "an op that only models use"; }

  static float Scale(const ResidualNormArgs& args, int part, int64_t row) {
    if (args.sum_of_squares == nullptr) return 1;
    const int first = part / args.parts_per_group * args.parts_per_group;
    float sum = 0;
    for (int p = first; p < first + args.parts_per_group; ++p) {
      sum += args.sum_of_squares[p * args.rows + row];
    }
    return 1 / std::sqrt(sum / static_cast<float>(args.group_width) +
                         args.group_eps);
  }

  static void Norm(const ResidualNormArgs& args, int64_t r) {
    const float* const row = args.residual + r * args.cols;
    float squares = 0;
    for (int64_t c = 0; c < args.cols; ++c) squares += row[c] * row[c];
    const float scale =
        1 / std::sqrt(squares / static_cast<float>(args.cols) + args.eps);
    for (int64_t c = 0; c < args.cols; ++c) {
      const float value = row[c] * scale * args.norm_weight[c];
      const int64_t at = r * args.cols + c;
      if (args.normed_dtype == DType::kBFloat16) {
        static_cast<BFloat16*>(args.normed)[at] = ToBFloat16(value);
      } else {
        static_cast<float*>(args.normed)[at] = value;
      }
    }
  }
};

}  // namespace

std::unique_ptr<Backend> MakeSumBackend() {
  return std::make_unique<SumBackend>();
}

}  // namespace ring
