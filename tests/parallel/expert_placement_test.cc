#include "parallel/expert_placement.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ring {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(ExpertPlacementTest, IsContiguousOverTheWorld) {
  const auto placement = ExpertPlacement::Contiguous(2, 256, 8);
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_EQ(placement->num_layers(), 2);
  EXPECT_EQ(placement->num_experts(), 256);
  for (int e = 0; e < 256; ++e) {
    EXPECT_EQ(placement->RankOf(1, e), e / 32);
    EXPECT_EQ(placement->LocalIndex(1, e), e % 32);
  }
  EXPECT_EQ(placement->Owned(0, 3).front(), 96);
  EXPECT_EQ(placement->Owned(0, 3).back(), 127);
}

TEST(ExpertPlacementTest, GivesTheRestToTheFirstRanks) {
  const auto placement = ExpertPlacement::Contiguous(1, 8, 3);
  ASSERT_TRUE(placement.ok());
  EXPECT_THAT(placement->Owned(0, 0), ElementsAre(0, 1, 2));
  EXPECT_THAT(placement->Owned(0, 1), ElementsAre(3, 4, 5));
  EXPECT_THAT(placement->Owned(0, 2), ElementsAre(6, 7));
  EXPECT_THAT(placement->ToLocal(0, 1),
              ElementsAre(-1, -1, -1, 0, 1, 2, -1, -1));
}

TEST(ExpertPlacementTest, LeavesRanksEmptyWhenThereAreFewExperts) {
  const auto placement = ExpertPlacement::Contiguous(1, 2, 4);
  ASSERT_TRUE(placement.ok());
  EXPECT_THAT(placement->Owned(0, 1), ElementsAre(1));
  EXPECT_THAT(placement->Owned(0, 3), IsEmpty());
}

TEST(ExpertPlacementTest, TakesAnyTable) {
  const auto placement = ExpertPlacement::FromTable({{1, 0, 1}, {0, 0, 0}}, 2);
  ASSERT_TRUE(placement.ok());
  EXPECT_THAT(placement->Owned(0, 1), ElementsAre(0, 2));
  EXPECT_EQ(placement->LocalIndex(0, 2), 1);
  EXPECT_THAT(placement->Owned(1, 1), IsEmpty());
  EXPECT_THAT(placement->ToLocal(1, 0), ElementsAre(0, 1, 2));
}

TEST(ExpertPlacementTest, GivesSlicesToAllRanks) {
  const auto placement = ExpertPlacement::Sliced(2, 3, 4);
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_TRUE(placement->sliced());
  EXPECT_FALSE(ExpertPlacement::Contiguous(2, 3, 4)->sliced());
  EXPECT_EQ(placement->num_layers(), 2);
  for (int rank = 0; rank < 4; ++rank) {
    EXPECT_THAT(placement->Owned(1, rank), ElementsAre(0, 1, 2));
    EXPECT_THAT(placement->ToLocal(1, rank), ElementsAre(0, 1, 2));
  }
  EXPECT_FALSE(ExpertPlacement::Sliced(1, 4, 0).ok());
}

TEST(ExpertPlacementTest, RefusesBrokenTables) {
  const auto outside = ExpertPlacement::FromTable({{0, 1}, {0, 2}}, 2);
  EXPECT_THAT(std::string(outside.status().message()),
              HasSubstr("expert 1 of layer 1 on rank 2 of a world of 2"));
  const auto uneven = ExpertPlacement::FromTable({{0, 1}, {0}}, 2);
  EXPECT_THAT(std::string(uneven.status().message()),
              HasSubstr("layer 1 has 1 experts, layer 0 has 2"));
  EXPECT_FALSE(ExpertPlacement::Contiguous(1, 4, 0).ok());
}

}  // namespace
}  // namespace ring
