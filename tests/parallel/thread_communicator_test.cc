#include "parallel/thread_communicator.h"

#include <functional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu_backend.h"
#include "tests/parallel/collective_cases.h"

namespace ring {
namespace {

MeshConfig ConfigOf(int rank, int tp, int dp) {
  MeshConfig config;
  config.world_size = tp * dp;
  config.rank = rank;
  config.tp = tp;
  config.dp = dp;
  return config;
}

void RunRanks(int ranks, const std::function<void(int rank)>& body) {
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) threads.emplace_back(body, r);
  for (std::thread& thread : threads) thread.join();
}

class ThreadCommunicatorTest
    : public testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(ThreadCommunicatorTest, PassesTheCase) {
  const int ranks = std::get<0>(GetParam());
  const CollectiveCase& test_case = CollectiveCases()[std::get<1>(GetParam())];
  ThreadWorld world(ranks, 1);
  std::vector<Progress> progress(ranks);
  RunRanks(ranks, [&](int rank) {
    const auto backend = MakeCpuBackend(1);
    const auto control = world.Control(rank, &progress[rank]);
    const auto mesh = Mesh::Create(ConfigOf(rank, ranks, 1));
    ASSERT_TRUE(mesh.ok()) << mesh.status();
    auto axes = world.Communicators(
        *mesh, {backend.get(), &progress[rank], kMaxCaseRows, kMaxCaseCols,
                kMaxCasePartsBytes});
    ASSERT_TRUE(axes.ok()) << axes.status();
    test_case.run(axes->world.get(), control.get(), backend.get());
  });
  // Ranks in lock step have begun the same number of collectives.
  for (int r = 1; r < ranks; ++r) {
    EXPECT_EQ(progress[r].collective.load(), progress[0].collective.load());
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, ThreadCommunicatorTest,
    testing::Combine(
        testing::Values(1, 2, 4, 7),
        testing::Range(0, static_cast<int>(CollectiveCases().size()))),
    [](const auto& info) {
      return std::string(CollectiveCases()[std::get<1>(info.param)].name) +
             "On" + std::to_string(std::get<0>(info.param));
    });

TEST(ThreadWorldTest, AxesConnectTheRightRanks) {
  const int tp = 3;
  const int dp = 2;
  ThreadWorld world(tp, dp);
  RunRanks(tp * dp, [&](int rank) {
    Progress progress;
    const auto backend = MakeCpuBackend(1);
    const auto mesh = Mesh::Create(ConfigOf(rank, tp, dp));
    ASSERT_TRUE(mesh.ok()) << mesh.status();
    auto axes = world.Communicators(*mesh, {backend.get(), &progress, 1, 1});
    ASSERT_TRUE(axes.ok()) << axes.status();
    EXPECT_EQ(axes->tp->rank(), mesh->tp_rank());
    EXPECT_EQ(axes->dp->rank(), mesh->dp_rank());
    std::vector<int> tp_ranks(tp);
    axes->tp->AllGather(&rank, tp_ranks.data(), sizeof(int));
    for (int t = 0; t < tp; ++t) EXPECT_EQ(tp_ranks[t], rank / tp * tp + t);
    std::vector<int> dp_ranks(dp);
    axes->dp->AllGather(&rank, dp_ranks.data(), sizeof(int));
    for (int d = 0; d < dp; ++d) EXPECT_EQ(dp_ranks[d], d * tp + rank % tp);
  });
}

TEST(ThreadControlChannelTest, GivesUpWhenAPeerStaysAway) {
  ThreadWorld world(2, 1);
  const auto control = world.Control(0, nullptr, std::chrono::milliseconds(5));
  std::string message = "plan";
  EXPECT_EQ(control->Broadcast(&message).code(),
            absl::StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace ring
