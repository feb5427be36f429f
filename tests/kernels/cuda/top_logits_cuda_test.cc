// CPU = CUDA for the likeliest ids: the same ids in the same order.
#include "kernels/sampling/top_logits.h"

#include <limits>
#include <vector>

#include "tests/kernels/cuda/device_arena.h"

namespace ring {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Two ranks' halves of every row, merged.
std::vector<TopLogit> Top(Backend* backend, int64_t cols, bool coarse) {
  DeviceArena arena(backend);
  const std::vector<int> num_top = {20, 0, 1, 5, 20, 20, 7};
  const auto rows = static_cast<int64_t>(num_top.size());
  std::vector<SamplingRow> params(rows);
  for (int64_t r = 0; r < rows; ++r) params[r].num_top = num_top[r];
  const SamplingRow* const device_params = arena.Put(params);
  TopLogit* const parts = arena.Make<TopLogit>(2 * rows * kMaxTopLogits);
  RowStats* const part_stats = arena.Make<RowStats>(2 * rows);
  for (int rank = 0; rank < 2; ++rank) {
    std::vector<float> logits = RandomFloats(rows * cols, 8 + rank, 3.0f);
    // Many equal ones.
    if (coarse) {
      for (float& x : logits) x = static_cast<float>(static_cast<int>(x));
    }
    if (rank == 1) {
      for (int64_t i = 0; i < cols; ++i) logits[4 * cols + i] = -kInf;
      logits[5 * cols] = std::numeric_limits<float>::quiet_NaN();
    }
    const LogitsSlice slice = {arena.Put(logits), rows, cols,
                               static_cast<int32_t>(rank * cols),
                               static_cast<int32_t>(2 * cols - cols / 8)};
    backend->LogitStats({slice, part_stats + rank * rows});
    backend->TopLogits(
        {slice, device_params, parts + rank * rows * kMaxTopLogits});
  }
  RowStats* const stats = arena.Make<RowStats>(rows);
  backend->MergeStats(
      {part_stats, 2, rows, stats, arena.Make<Threshold>(rows)});
  TopLogit* const top = arena.Make<TopLogit>(rows * kMaxTopLogits);
  backend->MergeTopLogits({parts, 2, rows, device_params, stats, top});
  backend->TopLogits({});
  backend->MergeTopLogits({});
  return arena.Get(top, rows * kMaxTopLogits);
}

TEST(TopLogitsCudaTest, AgreesInEveryId) {
  for (const bool coarse : {false, true}) {
    for (const int64_t cols : {1, 13, 4096, 4097, 78592}) {
      const std::vector<TopLogit> cpu = Top(TestCpu(), cols, coarse);
      const std::vector<TopLogit> gpu = Top(TestGpu(), cols, coarse);
      ASSERT_EQ(gpu.size(), cpu.size());
      for (size_t i = 0; i < cpu.size(); ++i) {
        ASSERT_EQ(gpu[i].id, cpu[i].id)
            << "row " << i / kMaxTopLogits << ", entry " << i % kMaxTopLogits
            << " of " << cols << " columns";
        EXPECT_NEAR(gpu[i].value, cpu[i].value, 1e-5);
      }
    }
  }
}

}  // namespace
}  // namespace ring
