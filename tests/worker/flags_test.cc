// What the command line of ring-worker refuses before anything starts.
#include "worker/flags.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ring {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<WorkerFlags> Parse(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(),
                   {"ring-worker", "--model", "m", "--coordinator", "h:1"});
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  int exit_code = 0;
  auto flags =
      ParseWorkerFlags(static_cast<int>(argv.size()), argv.data(), &exit_code);
  EXPECT_EQ(exit_code, -1);
  return flags;
}

std::string Refusal(const std::vector<std::string>& arguments) {
  const auto flags = Parse(arguments);
  EXPECT_EQ(flags.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(flags.status().message());
}

TEST(WorkerFlagsTest, ExpertsAreOwnedUnlessSliced) {
  EXPECT_EQ(Parse({})->experts, "owned");
  EXPECT_EQ(Parse({"--experts", "sliced", "--tp", "4"})->experts, "sliced");
  EXPECT_TRUE(Parse({"--experts", "sliced", "--dp", "1"}).ok());
  EXPECT_TRUE(
      Parse({"--experts", "sliced", "--moe-exchange", "replicated"}).ok());
  EXPECT_TRUE(
      Parse({"--experts", "owned", "--moe-exchange", "alltoall", "--dp", "2"})
          .ok());
}

TEST(WorkerFlagsTest, RefusesWhatSlicedExpertsCannotDo) {
  EXPECT_THAT(Refusal({"--experts", "halved"}), HasSubstr("--experts"));
  EXPECT_THAT(Refusal({"--experts", "sliced", "--dp", "2"}),
              HasSubstr("--experts sliced needs --dp 1, not 2"));
  EXPECT_THAT(Refusal({"--experts", "sliced", "--moe-exchange", "alltoall"}),
              HasSubstr("--moe-exchange alltoall needs --experts owned"));
}

TEST(WorkerFlagsTest, DeterministicRunsOnCpus) {
  EXPECT_TRUE(Parse({"--deterministic"})->deterministic);
  EXPECT_THAT(Refusal({"--deterministic", "--device", "cuda:1"}),
              HasSubstr("--deterministic needs --device cpu, not cuda:1"));
}

TEST(WorkerFlagsTest, RefusesStepsThatCannotHoldTheSequences) {
  EXPECT_THAT(
      Refusal({"--max-sequences", "100", "--max-batch-tokens", "163"}),
      HasSubstr("--max-batch-tokens = 163 is below --max-sequences + 64 = "
                "164"));
}

}  // namespace
}  // namespace ring
