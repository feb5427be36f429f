#include "tests/bench/machine.h"

#include <atomic>
#include <map>
#include <vector>

#include "kernels/base/thread_pool.h"

namespace ring {
namespace {

constexpr int64_t kBytes = int64_t{256} << 20;
constexpr int kPasses = 8;

// Two 64-bit lanes, the widest load that every processor has.
typedef uint64_t Pair __attribute__((vector_size(16)));

// Reads `streams` places at once: memory serves several sequences faster than
// one where the processor prefetches within a page only.
template <int kStreams>
Pair SumOf(const Pair* data, int64_t count) {
  const int64_t part = count / kStreams;
  Pair sum[kStreams * 4] = {};
  for (int64_t i = 0; i + 4 <= part; i += 4) {
    for (int s = 0; s < kStreams; ++s) {
      for (int j = 0; j < 4; ++j) sum[s * 4 + j] += data[s * part + i + j];
    }
  }
  Pair total = {};
  for (const Pair& each : sum) total += each;
  return total;
}

}  // namespace

double ReadBandwidth(ThreadPool* pool) {
  static std::map<int, double> remembered;
  double& best = remembered[pool->threads()];
  if (best > 0) return best;
  const std::vector<Pair> data(kBytes / sizeof(Pair), Pair{1, 2});
  const int64_t count = static_cast<int64_t>(data.size());
  std::atomic<uint64_t> sink{0};
  const auto measure = [&](auto sum_of) {
    for (int pass = 0; pass < kPasses; ++pass) {
      const auto start = std::chrono::steady_clock::now();
      pool->ParallelFor(count, 1 << 16, [&](int64_t begin, int64_t end) {
        const Pair sum = sum_of(data.data() + begin, end - begin);
        sink.fetch_add(sum[0] ^ sum[1], std::memory_order_relaxed);
      });
      const std::chrono::duration<double> elapsed =
          std::chrono::steady_clock::now() - start;
      best = std::max(best, static_cast<double>(kBytes) / elapsed.count());
    }
  };
  measure(SumOf<1>);
  measure(SumOf<4>);
  return best;
}

double UpdateBandwidth(ThreadPool* pool) {
  static std::map<int, double> remembered;
  double& best = remembered[pool->threads()];
  if (best > 0) return best;
  std::vector<Pair> data(kBytes / sizeof(Pair), Pair{1, 2});
  const int64_t count = static_cast<int64_t>(data.size());
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    pool->ParallelFor(count, 1 << 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) data[i] += Pair{1, 1};
    });
    const std::chrono::duration<double> elapsed =
        std::chrono::steady_clock::now() - start;
    best = std::max(best, 2.0 * kBytes / elapsed.count());
  }
  return best;
}

}  // namespace ring
