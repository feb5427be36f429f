#include "parallel/mesh.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ring {
namespace {

using testing::HasSubstr;

MeshConfig Flash(int tp, int dp, int rank) {
  MeshConfig config;
  config.world_size = tp * dp;
  config.rank = rank;
  config.tp = tp;
  config.dp = dp;
  config.num_attention_heads = 32;
  config.num_key_value_heads = 4;
  config.group_norm_size = 4;
  config.vocab_size = 157184;
  config.intermediate_size = 9216;
  config.shared_expert_size = 1024;
  return config;
}

Mesh MeshOf(const MeshConfig& config) {
  const auto mesh = Mesh::Create(config);
  EXPECT_TRUE(mesh.ok()) << mesh.status();
  return *mesh;
}

TEST(MeshTest, NumbersRanksGroupByGroup) {
  const Mesh mesh = MeshOf(Flash(4, 2, 6));
  EXPECT_EQ(mesh.tp_rank(), 2);
  EXPECT_EQ(mesh.dp_rank(), 1);
  EXPECT_EQ(mesh.RankOf(1, 2), 6);
  EXPECT_FALSE(mesh.is_leader());
}

TEST(MeshTest, SlicesHeads) {
  const Mesh mesh = MeshOf(Flash(4, 2, 6));
  EXPECT_EQ(mesh.heads(), (Range{16, 24}));
  EXPECT_EQ(mesh.kv_heads(), (Range{2, 3}));
  EXPECT_EQ(mesh.norm_groups(), (Range{2, 3}));
  EXPECT_EQ(mesh.ranks_per_norm_group(), 1);
  EXPECT_EQ(MeshOf(Flash(2, 1, 1)).kv_heads(), (Range{2, 4}));
  EXPECT_EQ(MeshOf(Flash(2, 1, 1)).norm_groups(), (Range{2, 4}));
}

TEST(MeshTest, ReplicatesKvHeadsAndSharesNormGroups) {
  for (int rank = 0; rank < 8; ++rank) {
    const Mesh mesh = MeshOf(Flash(8, 1, rank));
    EXPECT_EQ(mesh.kv_heads(), (Range{rank / 2, rank / 2 + 1}));
    EXPECT_EQ(mesh.norm_groups(), (Range{rank / 2, rank / 2 + 1}));
    EXPECT_EQ(mesh.ranks_per_norm_group(), 2);
    // Query head h reads KV head h / 8.
    EXPECT_EQ(mesh.heads().begin / 8, mesh.kv_heads().begin);
    EXPECT_EQ((mesh.heads().end - 1) / 8, mesh.kv_heads().begin);
  }
}

TEST(MeshTest, CoversTheVocabularyWithShortAndEmptyEnds) {
  MeshConfig config;
  config.world_size = config.tp = 4;
  const auto slices = [&](int64_t vocab) {
    config.vocab_size = vocab;
    std::vector<Range> all;
    for (int t = 0; t < 4; ++t) all.push_back(MeshOf(config).vocab(t));
    return all;
  };
  EXPECT_EQ(slices(10), (std::vector<Range>{{0, 3}, {3, 6}, {6, 9}, {9, 10}}));
  EXPECT_EQ(slices(5), (std::vector<Range>{{0, 2}, {2, 4}, {4, 5}, {5, 5}}));
  EXPECT_EQ(slices(8), (std::vector<Range>{{0, 2}, {2, 4}, {4, 6}, {6, 8}}));
}

TEST(MeshTest, SlicesRowsForReduceScatter) {
  const Mesh mesh = MeshOf(Flash(4, 1, 0));
  EXPECT_EQ(mesh.RowSlice(0, 3), (Range{0, 0}));
  EXPECT_EQ(mesh.RowSlice(1, 0), (Range{0, 1}));
  EXPECT_EQ(mesh.RowSlice(1, 1), (Range{1, 1}));
  EXPECT_EQ(mesh.RowSlice(6, 2), (Range{4, 6}));
  EXPECT_EQ(mesh.RowSlice(6, 3), (Range{6, 6}));
}

TEST(MeshTest, SlicesInnerSizes) {
  EXPECT_EQ(MeshOf(Flash(8, 1, 7)).InnerSlice(9216), (Range{8064, 9216}));
  EXPECT_EQ(MeshOf(Flash(1, 1, 0)).InnerSlice(512), (Range{0, 512}));
}

struct Refusal {
  int world_size, rank, tp, dp, heads, kv_heads, groups;
  int64_t inner, shared;
  const char* text;
};

TEST(MeshTest, RefusesWithTheNumbers) {
  const std::vector<Refusal> refusals = {
      {3, 0, 3, 1, 32, 0, 0, 0, 0, "tp=3 does not divide 32 query heads"},
      {6, 0, 6, 1, 36, 4, 0, 0, 0, "tp=6 neither divides 4 KV heads"},
      {6, 0, 6, 1, 36, 0, 4, 0, 0, "tp=6 neither divides 4 norm groups"},
      {4, 0, 4, 1, 32, 4, 4, 90, 0,
       "tp=4 does not divide 90 channels of the "
       "dense MLP"},
      {4, 0, 4, 1, 32, 4, 4, 0, 6,
       "tp=4 does not divide 6 channels of the "
       "shared expert"},
      {5, 0, 2, 2, 32, 4, 4, 0, 0, "tp=2 x dp=2 needs 4 ranks, but 5"},
      {4, 4, 2, 2, 32, 4, 4, 0, 0, "rank 4 is outside a world of 4"},
      {0, 0, 0, 1, 32, 4, 4, 0, 0, "tp=0 and dp=1"},
  };
  for (const Refusal& r : refusals) {
    MeshConfig config{r.world_size, r.rank,   r.tp, r.dp,    r.heads,
                      r.kv_heads,   r.groups, 0,    r.inner, r.shared};
    const auto mesh = Mesh::Create(config);
    EXPECT_EQ(mesh.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(mesh.status().message()), HasSubstr(r.text));
  }
}

}  // namespace
}  // namespace ring
