#include "kernels/token_copies/token_copies.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/thread_pool.h"

namespace ring {
namespace {

using testing::ElementsAre;

// The example of the header: 2 ranks, 4 experts, 3 rows, top 2.
class TokenCopiesTest : public testing::Test {
 protected:
  TokenCopiesTest() {
    PlanCopiesArgs plan;
    plan.experts = experts_.data();
    plan.rows = 3;
    plan.top_k = 2;
    plan.rank_of = rank_of_.data();
    plan.num_ranks = 2;
    plan.counts = counts_.data();
    plan.copy_of = copy_of_.data();
    cpu::PlanCopies(plan, &pool_);
  }

  const std::vector<int32_t> rank_of_ = {0, 0, 1, 1};
  const std::vector<int32_t> local_index_ = {0, 1, 0, 1};
  const std::vector<int32_t> experts_ = {1, 3, 2, 3, 0, 1};
  std::vector<int64_t> counts_ = {-9, -9};
  std::vector<int32_t> copy_of_ = std::vector<int32_t>(6, -9);
  ThreadPool pool_{2};
};

TEST_F(TokenCopiesTest, PlansACopyForEveryRankOnce) {
  EXPECT_THAT(counts_, ElementsAre(2, 2));
  EXPECT_THAT(copy_of_, ElementsAre(0, 0, -1, 1, 1, -1));
}

TEST_F(TokenCopiesTest, PacksByRankThenByRow) {
  const std::vector<float> weights = {.1f, .2f, .3f, .4f, .5f, .6f};
  const std::vector<char> x = {'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i'};
  std::vector<char> packed_x(12);
  std::vector<int32_t> packed_experts(8, -9);
  std::vector<float> packed_weights(8);
  PackCopiesArgs pack;
  pack.x = x.data();
  pack.row_bytes = 3;
  pack.experts = experts_.data();
  pack.weights = weights.data();
  pack.rows = 3;
  pack.top_k = 2;
  pack.rank_of = rank_of_.data();
  pack.local_index = local_index_.data();
  pack.num_ranks = 2;
  pack.counts = counts_.data();
  pack.copy_of = copy_of_.data();
  pack.packed_x = packed_x.data();
  pack.packed_experts = packed_experts.data();
  pack.packed_weights = packed_weights.data();
  cpu::PackCopies(pack, &pool_);
  EXPECT_EQ(std::string(packed_x.begin(), packed_x.end()), "abcghiabcdef");
  EXPECT_THAT(packed_experts, ElementsAre(1, -1, 0, 1, -1, 1, 0, 1));
  EXPECT_THAT(packed_weights,
              ElementsAre(.1f, .2f, .5f, .6f, .1f, .2f, .3f, .4f));
}

TEST_F(TokenCopiesTest, AddsPartsInOrderOfRanks) {
  // Row 0 gets 1e8 and then -1e8: what it had before is lost to rounding.
  const std::vector<float> parts = {1e8f, 1, 3, 4, -1e8f, 6, 7, 8};
  std::vector<float> out = {1, 10, 20, 30, 40, 50};
  AddCopiesArgs add;
  add.parts = parts.data();
  add.rows = 3;
  add.cols = 2;
  add.num_ranks = 2;
  add.counts = counts_.data();
  add.copy_of = copy_of_.data();
  add.out = out.data();
  cpu::AddCopies(add, &pool_);
  EXPECT_THAT(out, ElementsAre(0, 17, 27, 38, 43, 54));
}

TEST(PlanCopiesTest, CountsNothingWithoutRows) {
  ThreadPool pool(1);
  std::vector<int64_t> counts = {-9, -9, -9};
  PlanCopiesArgs plan;
  plan.num_ranks = 3;
  plan.counts = counts.data();
  cpu::PlanCopies(plan, &pool);
  EXPECT_THAT(counts, ElementsAre(0, 0, 0));
}

}  // namespace
}  // namespace ring
