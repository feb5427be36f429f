#include "kernels/base/thread_pool.h"

#include <atomic>
#include <vector>

#include "gtest/gtest.h"

namespace ring {
namespace {

TEST(ThreadPoolTest, CoversEveryIndexOnce) {
  for (const int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const int64_t count : {0, 1, 2, 63, 64, 65, 1000}) {
      for (const int64_t grain : {1, 8, 64}) {
        std::vector<std::atomic<int>> hits(count);
        pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end) {
          EXPECT_EQ(begin % grain, 0);
          for (int64_t i = begin; i < end; ++i) ++hits[i];
        });
        for (int64_t i = 0; i < count; ++i) ASSERT_EQ(hits[i], 1);
      }
    }
  }
}

TEST(ThreadPoolTest, RunsOnceOnEachThread) {
  ThreadPool pool(4);
  for (int repeat = 0; repeat < 200; ++repeat) {
    std::vector<std::atomic<int>> hits(4);
    pool.RunOnAll([&](int thread) { ++hits[thread]; });
    for (const auto& hit : hits) ASSERT_EQ(hit, 1);
  }
}

TEST(ThreadPoolTest, SumsWithoutRaces) {
  ThreadPool pool(2);
  std::vector<int64_t> values(10000);
  for (int repeat = 0; repeat < 50; ++repeat) {
    pool.ParallelFor(values.size(), 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) values[i] += i;
    });
  }
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(values[i], static_cast<int64_t>(50 * i));
  }
}

}  // namespace
}  // namespace ring
