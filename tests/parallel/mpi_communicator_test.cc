#include "parallel/mpi_communicator.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu_backend.h"
#include "tests/parallel/collective_cases.h"
#include "tests/parallel/mpi_world.h"

namespace ring {
namespace {

MeshConfig ConfigOf(int tp, int dp) {
  MeshConfig config;
  config.world_size = tp * dp;
  config.rank = MpiWorld::Get().runtime->rank();
  config.tp = tp;
  config.dp = dp;
  return config;
}

class MpiCommunicatorTest : public testing::TestWithParam<int> {};

TEST_P(MpiCommunicatorTest, PassesTheCase) {
  MpiWorld& world = MpiWorld::Get();
  const auto backend = MakeCpuBackend(1);
  const auto mesh = Mesh::Create(ConfigOf(world.runtime->size(), 1));
  ASSERT_TRUE(mesh.ok()) << mesh.status();
  auto axes = world.runtime->CreateCommunicators(
      *mesh, {backend.get(), &world.progress, kMaxCaseRows, kMaxCaseCols,
              kMaxCasePartsBytes});
  ASSERT_TRUE(axes.ok()) << axes.status();
  CollectiveCases()[GetParam()].run(axes->world.get(), world.runtime->control(),
                                    backend.get());
}

INSTANTIATE_TEST_SUITE_P(
    All, MpiCommunicatorTest,
    testing::Range(0, static_cast<int>(CollectiveCases().size())),
    [](const auto& info) {
      return std::string(CollectiveCases()[info.param].name);
    });

TEST(MpiRuntimeTest, AxesConnectTheRightRanks) {
  MpiWorld& world = MpiWorld::Get();
  const int size = world.runtime->size();
  const int rank = world.runtime->rank();
  for (int tp = 1; tp <= size; ++tp) {
    if (size % tp != 0) continue;
    const int dp = size / tp;
    const auto backend = MakeCpuBackend(1);
    const auto mesh = Mesh::Create(ConfigOf(tp, dp));
    ASSERT_TRUE(mesh.ok()) << mesh.status();
    auto axes = world.runtime->CreateCommunicators(
        *mesh, {backend.get(), &world.progress, 1, 1});
    ASSERT_TRUE(axes.ok()) << axes.status();
    std::vector<int> tp_ranks(tp);
    axes->tp->AllGather(&rank, tp_ranks.data(), sizeof(int));
    for (int t = 0; t < tp; ++t) EXPECT_EQ(tp_ranks[t], rank / tp * tp + t);
    std::vector<int> dp_ranks(dp);
    axes->dp->AllGather(&rank, dp_ranks.data(), sizeof(int));
    for (int d = 0; d < dp; ++d) EXPECT_EQ(dp_ranks[d], d * tp + rank % tp);
  }
}

TEST(MpiRuntimeTest, CountsTheRanksOfTheHost) {
  MpiRuntime* const runtime = MpiWorld::Get().runtime;
  // All ranks of the test run here.
  EXPECT_EQ(runtime->local_rank(), runtime->rank());
  EXPECT_EQ(runtime->local_size(), runtime->size());
  EXPECT_FALSE(runtime->host_name().empty());
}

}  // namespace
}  // namespace ring
