#include "worker/shard_of_mesh.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ring {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

ModelConfig SmallConfig() {
  ModelConfig c;
  c.hidden_size = 64;
  c.num_hidden_layers = 2;
  c.num_attention_heads = 4;
  c.num_key_value_heads = 4;
  c.head_dim = 16;
  c.group_norm_size = 4;
  c.intermediate_size = 32;
  c.first_k_dense_replace = 1;
  c.num_experts = 4;
  c.moe_intermediate_size = 3;
  c.vocab_size = 97;
  return c;
}

ShardSpec SpecOf(const ModelConfig& config, int rank, int tp, int dp,
                 bool sliced) {
  const auto mesh = MakeMesh(config, tp * dp, rank, tp, dp);
  EXPECT_TRUE(mesh.ok()) << mesh.status();
  const auto placement = PlaceExperts(config, *mesh, sliced);
  EXPECT_TRUE(placement.ok()) << placement.status();
  return MakeShardSpec(config, *mesh, *placement);
}

TEST(ShardOfMeshTest, OwnedExpertsLieOverTheWorld) {
  const ShardSpec spec =
      SpecOf(SmallConfig(), /*rank=*/1, /*tp=*/2, /*dp=*/2, /*sliced=*/false);
  EXPECT_FALSE(spec.slice_experts);
  EXPECT_THAT(spec.experts[0], IsEmpty());  // a dense layer
  EXPECT_THAT(spec.experts[1], ElementsAre(1));
}

TEST(ShardOfMeshTest, SlicedExpertsAreOnEveryRank) {
  for (int rank = 0; rank < 2; ++rank) {
    const ShardSpec spec =
        SpecOf(SmallConfig(), rank, /*tp=*/2, /*dp=*/1, /*sliced=*/true);
    EXPECT_TRUE(spec.slice_experts);
    EXPECT_EQ(spec.tp_rank, rank);
    EXPECT_THAT(spec.experts[0], IsEmpty());
    EXPECT_THAT(spec.experts[1], ElementsAre(0, 1, 2, 3));
  }
}

TEST(ShardOfMeshTest, NamesWhatCannotBeSliced) {
  const ModelConfig config = SmallConfig();
  const auto groups = MakeMesh(config, /*world_size=*/4, 0, /*tp=*/2, /*dp=*/0);
  ASSERT_TRUE(groups.ok()) << groups.status();
  EXPECT_THAT(
      std::string(PlaceExperts(config, *groups, true).status().message()),
      HasSubstr("--experts sliced needs one data-parallel group: 4 ranks at "
                "tp=2 make 2"));
  const auto wide = MakeMesh(config, /*world_size=*/4, 0, /*tp=*/4, /*dp=*/1);
  ASSERT_TRUE(wide.ok()) << wide.status();
  EXPECT_THAT(std::string(PlaceExperts(config, *wide, true).status().message()),
              HasSubstr("moe_intermediate_size=3 cannot be sliced over tp=4"));
}

}  // namespace
}  // namespace ring
