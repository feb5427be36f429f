#include "worker/start_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "parallel/thread_communicator.h"

namespace ring {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr int64_t kGigabyte = 1'000'000'000;

// What each rank of a world returns.
template <typename Result>
std::vector<Result> OnRanks(
    int ranks, const std::function<Result(ControlChannel* control)>& body) {
  ThreadWorld world(ranks, 1);
  std::vector<Result> results(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      const auto control = world.Control(rank, nullptr);
      results[rank] = body(control.get());
    });
  }
  for (std::thread& thread : threads) thread.join();
  return results;
}

// What three ranks agree on when rank r says statuses[r].
std::string AgreedMistake(const std::vector<absl::Status>& statuses) {
  const auto mistakes = OnRanks<std::string>(3, [&](ControlChannel* control) {
    const int rank = control->rank();
    const auto mistake =
        FirstMistake(control, absl::StrCat("node", rank), statuses[rank]);
    EXPECT_TRUE(mistake.ok()) << mistake.status();
    return mistake.value_or("");
  });
  EXPECT_EQ(mistakes[1], mistakes[0]);
  EXPECT_EQ(mistakes[2], mistakes[0]);
  return mistakes[0];
}

TEST(FirstMistakeTest, IsEmptyWhenAllRanksAreWell) {
  EXPECT_EQ(AgreedMistake({{}, {}, {}}), "");
}

TEST(FirstMistakeTest, NamesNoRankWhenAllSayTheSame) {
  const absl::Status same = absl::InvalidArgumentError("--tp 3\nis odd");
  EXPECT_EQ(AgreedMistake({same, same, same}), "--tp 3\nis odd");
}

TEST(FirstMistakeTest, NamesTheLowestRankThatHasOne) {
  const absl::Status one = absl::NotFoundError("no GPU 1");
  const absl::Status other = absl::NotFoundError("no GPU 2");
  EXPECT_EQ(AgreedMistake({{}, one, other}), "rank 1 on node1: no GPU 1");
  EXPECT_EQ(AgreedMistake({{}, {}, one}), "rank 2 on node2: no GPU 1");
  EXPECT_EQ(AgreedMistake({other, one, one}), "rank 0 on node0: no GPU 2");
}

TEST(BytesOfNeighboursTest, CountsTheOtherRanksOfTheHost) {
  std::vector<HostIdentity> hosts(4);
  hosts[0].boot = hosts[2].boot = hosts[3].boot = "a";
  hosts[1].boot = "b";
  hosts[3].pid_namespace = "a container of that host";
  const auto bytes = OnRanks<int64_t>(4, [&](ControlChannel* control) {
    return BytesOfNeighbours(control, hosts, 10 + control->rank()).value_or(-1);
  });
  EXPECT_EQ(bytes, (std::vector<int64_t>{12, 0, 10, 0}));
}

class CheckMemoryTest : public ::testing::Test {
 protected:
  // In gigabytes.
  std::string Check(int64_t weights, int64_t pages, int64_t slots,
                    int64_t workspace, int64_t neighbours, int64_t available) {
    WorkerFlags flags;
    flags.kv_tokens = 111111;
    flags.max_sequences = 222;
    flags.max_batch_tokens = 3333;
    const MemoryNeed need{
        weights * kGigabyte,
        {pages * kGigabyte, slots * kGigabyte, workspace * kGigabyte}};
    const absl::Status status =
        CheckMemory(flags, need, neighbours * kGigabyte, available * kGigabyte);
    EXPECT_TRUE(status.ok() || absl::IsResourceExhausted(status)) << status;
    return std::string(status.message());
  }
};

TEST_F(CheckMemoryTest, PassesWhatFits) {
  EXPECT_EQ(Check(4, 3, 2, 1, 0, 10), "");
  EXPECT_EQ(Check(4, 3, 2, 1, 30, 40), "");
}

TEST_F(CheckMemoryTest, HasTheNumbers) {
  const std::string message = Check(4, 3, 2, 1, 30, 39);
  for (const char* part :
       {"needs 10.000 GB", "4.000 GB of weights", "3.000 GB of KV pages",
        "2.000 GB of state slots", "1.000 GB of workspace",
        "the other ranks of this host 30.000 GB", "39.000 GB are available"}) {
    EXPECT_THAT(message, HasSubstr(part));
  }
  EXPECT_THAT(Check(4, 3, 2, 1, 0, 9), Not(HasSubstr("other ranks")));
}

TEST_F(CheckMemoryTest, NamesTheFlagOfTheLargestPart) {
  EXPECT_THAT(Check(4, 3, 2, 1, 0, 9), HasSubstr("lower --kv-tokens 111111"));
  EXPECT_THAT(Check(4, 2, 3, 1, 0, 9), HasSubstr("lower --max-sequences 222"));
  EXPECT_THAT(Check(4, 1, 2, 3, 0, 9),
              HasSubstr("lower --max-batch-tokens 3333"));
}

TEST_F(CheckMemoryTest, SmallerCachesDoNotHelpWeightsThatDoNotFit) {
  EXPECT_THAT(Check(40, 30, 2, 1, 0, 39), HasSubstr("more hosts or GPUs"));
  // Three neighbours of the same size: 10 of 40 GB are for this rank.
  EXPECT_THAT(Check(12, 30, 2, 1, 135, 40), HasSubstr("more hosts or GPUs"));
  EXPECT_THAT(Check(8, 30, 2, 1, 123, 40), HasSubstr("lower --kv-tokens"));
}

}  // namespace
}  // namespace ring
