#include "tests/bench/machine.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <map>

#include "kernels/base/check.h"
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

// kBytes of it, on huge pages like the weights of a model.
class Memory {
 public:
  Memory() : data_(static_cast<Pair*>(std::aligned_alloc(kHugePage, kBytes))) {
    RING_CHECK(data_ != nullptr);
    madvise(data_, kBytes, MADV_HUGEPAGE);
    std::fill_n(data_, count(), Pair{1, 2});
  }
  ~Memory() { std::free(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  Pair* data() const { return data_; }
  int64_t count() const { return kBytes / static_cast<int64_t>(sizeof(Pair)); }

 private:
  static constexpr int64_t kHugePage = int64_t{2} << 20;
  Pair* const data_;
};

}  // namespace

double ReadBandwidth(ThreadPool* pool) {
  static std::map<int, double> remembered;
  double& best = remembered[pool->threads()];
  if (best > 0) return best;
  const Memory memory;
  const Pair* const data = memory.data();
  const int64_t count = memory.count();
  std::atomic<uint64_t> sink{0};
  const auto measure = [&](auto sum_of) {
    for (int pass = 0; pass < kPasses; ++pass) {
      const auto start = std::chrono::steady_clock::now();
      pool->ParallelFor(count, 1 << 16, [&](int64_t begin, int64_t end) {
        const Pair sum = sum_of(data + begin, end - begin);
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
  const Memory memory;
  Pair* const data = memory.data();
  const int64_t count = memory.count();
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
