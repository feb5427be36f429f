// Against the router written down in double.
#include "kernels/moe_routing/moe_routing.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/thread_pool.h"
#include "tests/kernels/tensor_support.h"

namespace ring {
namespace {

struct Shape {
  const char* name = "";
  int hidden = 16;
  int num_experts = 16;
  int n_group = 4;
  int topk_group = 2;
  int top_k = 4;
  bool norm_topk_prob = true;
  bool bias = true;
  DType x_dtype = DType::kFloat32;
  DType router_dtype = DType::kFloat32;
};

struct Problem {
  Problem(const Shape& s, int rows)
      : shape(s),
        rows(rows),
        x(s.x_dtype, RandomFloats(rows * s.hidden, 1)),
        router(s.router_dtype, RandomFloats(s.num_experts * s.hidden, 2,
                                            1 / std::sqrt(float(s.hidden)))),
        bias(RandomFloats(s.num_experts, 3, 0.2f)),
        logits(rows * s.num_experts),
        experts(rows * s.top_k, -1),
        weights(rows * s.top_k) {}

  void Run(int threads = 1) {
    MoeRoutingArgs args;
    args.x = x.data();
    args.x_dtype = shape.x_dtype;
    args.rows = rows;
    args.router.data = router.data();
    args.router.dtype = shape.router_dtype;
    args.router.rows = shape.num_experts;
    args.router.cols = args.router.row_stride = shape.hidden;
    args.expert_bias = shape.bias ? bias.data() : nullptr;
    args.num_experts = shape.num_experts;
    args.n_group = shape.n_group;
    args.topk_group = shape.topk_group;
    args.top_k = shape.top_k;
    args.norm_topk_prob = shape.norm_topk_prob;
    args.routed_scaling_factor = 2.5f;
    args.logits = logits.data();
    args.experts = experts.data();
    args.weights = weights.data();
    if (!to_local.empty()) {
      local.assign(experts.size(), -7);
      args.local = local.data();
      args.to_local = to_local.data();
      args.row_valid = row_valid.empty() ? nullptr : row_valid.data();
    }
    ThreadPool pool(threads);
    cpu::MoeRouting(args, &pool);
  }

  // Sets the logits of row 0: x is 1 in column 0, which holds them.
  void SetLogits(const std::vector<float>& values) {
    for (int i = 0; i < shape.hidden; ++i) x.Set(i, i == 0);
    for (int e = 0; e < shape.num_experts; ++e) {
      router.Set(e * shape.hidden, values[e]);
    }
  }

  Shape shape;
  int rows;
  Tensor x, router;
  std::vector<float> bias, logits;
  std::vector<int32_t> experts;
  // Inputs and output of the mapping to local experts, none if empty.
  std::vector<int32_t> to_local, row_valid, local;
  std::vector<float> weights;
};

std::vector<int> Largest(const std::vector<double>& values, int count) {
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return values[a] > values[b]; });
  order.resize(count);
  return order;
}

// Expert ids and weights of one row.
std::pair<std::vector<int>, std::vector<double>> Reference(const Problem& p,
                                                           int row) {
  const Shape& s = p.shape;
  std::vector<double> score(s.num_experts), choice(s.num_experts);
  for (int e = 0; e < s.num_experts; ++e) {
    double logit = 0;
    for (int i = 0; i < s.hidden; ++i) {
      logit += double{p.x[row * s.hidden + i]} * p.router[e * s.hidden + i];
    }
    score[e] = 1 / (1 + std::exp(-logit));
    choice[e] = score[e] + (s.bias ? p.bias[e] : 0.0);
  }
  const int width = s.num_experts / s.n_group;
  std::vector<double> group(s.n_group);
  for (int g = 0; g < s.n_group; ++g) {
    std::vector<double> members(choice.begin() + g * width,
                                choice.begin() + (g + 1) * width);
    std::sort(members.rbegin(), members.rend());
    group[g] = members[0] + members[1];
  }
  const std::vector<int> open = Largest(group, s.topk_group);
  for (int e = 0; e < s.num_experts; ++e) {
    if (std::find(open.begin(), open.end(), e / width) == open.end()) {
      choice[e] = -std::numeric_limits<double>::infinity();
    }
  }
  const std::vector<int> experts = Largest(choice, s.top_k);
  double sum = 0;
  for (int e : experts) sum += score[e];
  std::vector<double> weights;
  for (int e : experts) {
    weights.push_back(score[e] * 2.5 / (s.norm_topk_prob ? sum + 1e-20 : 1));
  }
  return {experts, weights};
}

class MoeRoutingTest : public testing::TestWithParam<Shape> {};

TEST_P(MoeRoutingTest, FollowsTheDefinition) {
  for (int rows : {0, 1, 7, 50}) {
    Problem p(GetParam(), rows);
    p.Run(2);
    const int k = p.shape.top_k;
    for (int row = 0; row < rows; ++row) {
      const auto [experts, weights] = Reference(p, row);
      EXPECT_THAT(std::vector<int>(p.experts.begin() + row * k,
                                   p.experts.begin() + (row + 1) * k),
                  testing::ElementsAreArray(experts));
      for (int slot = 0; slot < k; ++slot) {
        EXPECT_NEAR(p.weights[row * k + slot], weights[slot], 2e-6);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, MoeRoutingTest,
    testing::Values(Shape{"RingTiny", 128, 16, 4, 2, 4},
                    Shape{"Flash", 512, 256, 8, 4, 8},
                    Shape{"OneGroup", 16, 10, 1, 1, 3},
                    Shape{"AllGroupsOpen", 16, 12, 3, 3, 12},
                    Shape{"NoNorm", 16, 16, 4, 2, 4, false},
                    Shape{"NoBias", 16, 16, 4, 2, 4, true, false},
                    Shape{"BFloat16", 128, 16, 4, 2, 4, true, true,
                          DType::kBFloat16, DType::kBFloat16},
                    Shape{"BFloat16Rows", 128, 16, 4, 2, 4, true, true,
                          DType::kBFloat16, DType::kFloat32}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(MoeRoutingLocalTest, NamesLocalExpertsOfValidRows) {
  Problem problem(Shape{}, 3);
  for (int e = 0; e < problem.shape.num_experts; ++e) {
    problem.to_local.push_back(e % 2 == 0 ? -1 : 100 + e);
  }
  for (const bool mask : {false, true}) {
    if (mask) problem.row_valid = {1, 0, 1};
    problem.Run();
    for (size_t i = 0; i < problem.experts.size(); ++i) {
      const int32_t e = problem.experts[i];
      const bool padding = mask && i / problem.shape.top_k == 1;
      EXPECT_EQ(problem.local[i], padding || e % 2 == 0 ? -1 : 100 + e) << i;
    }
  }
}

TEST(MoeRoutingTiesTest, EqualValuesGoToTheLowerIndex) {
  Shape shape;
  shape.bias = false;
  Problem p(shape, 1);
  p.SetLogits(std::vector<float>(16, 0.5f));
  p.Run();
  // All groups and all experts are equal.
  EXPECT_THAT(p.experts, testing::ElementsAre(0, 1, 2, 3));

  // Groups 1 and 3 tie for the second place behind group 2.
  p.SetLogits({0, 0, 0, 0, /**/ 1, 2, 0, 0, /**/ 0, 3, 3, 0, /**/ 2, 0, 1, 0});
  p.Run();
  EXPECT_THAT(p.experts, testing::ElementsAre(9, 10, 5, 4));
}

TEST(MoeRoutingTiesTest, BiasChoosesButDoesNotWeigh) {
  Shape shape;
  shape.top_k = 1;
  shape.topk_group = 1;
  shape.norm_topk_prob = false;
  Problem p(shape, 1);
  p.bias.assign(16, 0.0f);
  p.bias[6] = 5;
  p.SetLogits(std::vector<float>(16, 0.0f));
  p.Run();
  EXPECT_EQ(p.experts[0], 6);
  EXPECT_FLOAT_EQ(p.weights[0], 2.5f * 0.5f);
}

TEST(MoeRoutingRangeTest, ClosedGroupsStayClosedWhenAllChoicesAreNegative) {
  Shape shape;
  shape.top_k = 8;
  Problem p(shape, 1);
  p.bias.assign(16, -3.0f);
  p.SetLogits({0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0, 0});
  p.Run();
  EXPECT_THAT(p.experts, testing::ElementsAre(8, 9, 10, 11, 4, 5, 6, 7));
}

TEST(MoeRoutingRangeTest, NotANumberStillGivesValidIds) {
  Problem p(Shape{}, 1);
  p.SetLogits(std::vector<float>(16, std::numeric_limits<float>::quiet_NaN()));
  p.Run();
  EXPECT_THAT(p.experts,
              testing::Each(testing::AllOf(testing::Ge(0), testing::Lt(16))));
}

}  // namespace
}  // namespace ring
