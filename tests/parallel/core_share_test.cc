#include "parallel/core_share.h"

#include <numeric>

#include "gtest/gtest.h"

namespace ring {
namespace {

std::vector<int> Cores(int begin, int count) {
  std::vector<int> cores(count);
  std::iota(cores.begin(), cores.end(), begin);
  return cores;
}

// `ranks` ranks that may all run on the same cores.
std::vector<std::vector<int>> Together(int ranks, const std::vector<int>& all) {
  return std::vector<std::vector<int>>(ranks, all);
}

TEST(CoreShareTest, RanksThatAreNotBoundDivideTheHost) {
  EXPECT_EQ(ShareOfCores(Together(4, Cores(0, 16)), 0), 4);
  EXPECT_EQ(ShareOfCores(Together(3, Cores(0, 16)), 2), 5);
  EXPECT_EQ(ShareOfCores(Together(1, Cores(0, 16)), 0), 16);
  // As in a container that has few cores of a large host.
  EXPECT_EQ(ShareOfCores(Together(4, Cores(40, 4)), 1), 1);
}

TEST(CoreShareTest, RanksBoundToOneNumaNodeDivideIt) {
  std::vector<std::vector<int>> bound = Together(3, Cores(0, 12));
  for (int rank = 0; rank < 2; ++rank) bound.push_back(Cores(12, 12));
  EXPECT_EQ(ShareOfCores(bound, 0), 4);
  EXPECT_EQ(ShareOfCores(bound, 4), 6);
}

TEST(CoreShareTest, ARankBoundToItsOwnCoresHasThemAll) {
  EXPECT_EQ(ShareOfCores({Cores(0, 1), Cores(1, 3)}, 0), 1);
  EXPECT_EQ(ShareOfCores({Cores(0, 1), Cores(1, 3)}, 1), 3);
}

TEST(CoreShareTest, IsNeverLessThanOne) {
  EXPECT_EQ(ShareOfCores(Together(9, Cores(0, 2)), 8), 1);
  EXPECT_EQ(ShareOfCores({{}, {}}, 1), 1);
}

TEST(CoreShareTest, ThisThreadMayRunSomewhere) {
  EXPECT_FALSE(BoundCores().empty());
}

}  // namespace
}  // namespace ring
