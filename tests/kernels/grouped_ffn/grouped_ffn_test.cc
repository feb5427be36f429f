#include "kernels/grouped_ffn/grouped_ffn.h"

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/thread_pool.h"
#include "kernels/norm/residual_norm.h"
#include "tests/kernels/linear/test_matrix.h"

namespace ring {
namespace {

// One feed-forward block's weights and its value in double.
class TestMlp {
 public:
  // FP8 slices start `left` columns into their tensor: the down product of an
  // expert whose inner columns are split over ranks.
  TestMlp(DType dtype, int64_t hidden, int64_t inter, int64_t left,
          uint32_t seed)
      : hidden_(hidden),
        inter_(inter),
        gate_(dtype, {inter, hidden}, seed),
        up_(dtype, {inter, hidden}, seed + 100),
        down_(dtype, {hidden, inter, left}, seed + 200) {}

  GatedMlpWeights view() const {
    return {gate_.view(), up_.view(), down_.view()};
  }

  struct Result {
    std::vector<double> y;
    std::vector<double> tolerance;
  };

  // Rounds the inner activation to x_dtype, which shifts the result where it
  // falls on another side than the kernel's: by an ulp of every inner value
  // at most, that is by 2^-7 (bf16) of the sum of absolute products.
  Result Apply(const TestRows& x, int64_t row, DType x_dtype) const {
    std::vector<double> h(inter_);
    std::vector<double> h_error(inter_);
    for (int64_t k = 0; k < inter_; ++k) {
      const ExactDot g = Dot(x, row, gate_, k);
      const ExactDot u = Dot(x, row, up_, k);
      const double silu = g.value / (1 + std::exp(-g.value));
      h[k] = silu * u.value;
      // |silu'| < 1.1
      h_error[k] = 1.1 * g.tolerance * std::abs(u.value) +
                   std::abs(silu) * u.tolerance + g.tolerance * u.tolerance +
                   4 * 0x1p-23 * std::abs(h[k]);
      if (x_dtype == DType::kBFloat16) {
        h_error[k] += 0x1p-7 * std::abs(h[k]);
        h[k] = ToFloat(ToBFloat16(static_cast<float>(h[k])));
      }
    }
    Result result;
    for (int64_t n = 0; n < hidden_; ++n) {
      double sum = 0;
      double absolute = 0;
      double error = 0;
      for (int64_t k = 0; k < inter_; ++k) {
        const double w = down_.At(n, k);
        sum += h[k] * w;
        absolute += std::abs(h[k] * w);
        error += h_error[k] * std::abs(w);
      }
      result.y.push_back(sum);
      result.tolerance.push_back(
          error +
          0x1p-24 * (std::sqrt(static_cast<double>(inter_)) + 2) * absolute);
    }
    return result;
  }

 private:
  const int64_t hidden_;
  const int64_t inter_;
  const TestWeight gate_;
  const TestWeight up_;
  const TestWeight down_;
};

struct Types {
  DType x;
  DType w;
};

std::string TypesName(const testing::TestParamInfo<Types>& info) {
  return std::string("x_") + Name(info.param.x) + "_w_" + Name(info.param.w);
}

std::vector<Types> AllTypes() {
  std::vector<Types> all;
  for (DType x : {DType::kFloat32, DType::kBFloat16}) {
    for (DType w : {DType::kFloat32, DType::kBFloat16, DType::kFloat8E4M3}) {
      all.push_back({x, w});
    }
  }
  return all;
}

class DenseFfnTest : public testing::TestWithParam<Types> {
 protected:
  std::vector<float> Run(const TestMlp& mlp, const TestRows& x, int64_t rows,
                         int64_t hidden, int64_t inter, int threads,
                         bool accumulate) {
    ThreadPool pool(threads);
    std::vector<unsigned char> workspace(
        DenseFfnWorkspaceBytes(rows, inter, GetParam().x));
    std::vector<float> y(rows * hidden, 0.25f);
    DenseFfnArgs args;
    args.x = x.data();
    args.x_dtype = GetParam().x;
    args.rows = rows;
    args.decode_rows = rows / 2;
    args.weights = mlp.view();
    args.y = y.data();
    args.accumulate = accumulate;
    args.workspace = workspace.data();
    cpu::DenseFfn(args, &pool);
    return y;
  }

  void ExpectExact(int64_t rows, int64_t hidden, int64_t inter,
                   bool accumulate) {
    const TestMlp mlp(GetParam().w, hidden, inter, 40, 1);
    const TestRows x(GetParam().x, rows, hidden, 2);
    const std::vector<float> y =
        Run(mlp, x, rows, hidden, inter, 2, accumulate);
    for (int64_t i = 0; i < rows; ++i) {
      const TestMlp::Result exact = mlp.Apply(x, i, GetParam().x);
      for (int64_t n = 0; n < hidden; ++n) {
        const double expected = exact.y[n] + (accumulate ? 0.25 : 0);
        ASSERT_NEAR(y[i * hidden + n], expected,
                    exact.tolerance[n] + 0x1p-23 * std::abs(expected))
            << "row " << i << " of " << rows << ", column " << n;
      }
    }
  }
};

TEST_P(DenseFfnTest, EqualsDouble) {
  for (bool accumulate : {false, true}) {
    ExpectExact(1, 1, 1, accumulate);
    ExpectExact(3, 128, 384, accumulate);
    ExpectExact(5, 77, 99, accumulate);
  }
}

TEST_P(DenseFfnTest, EqualsDoubleBeyondOneBlockOfRows) {
  ExpectExact(258, 20, 30, true);
}

TEST_P(DenseFfnTest, DoesNothingForNoRows) { ExpectExact(0, 16, 16, false); }

TEST_P(DenseFfnTest, BitsDependOnNeitherThreadsNorOtherRows) {
  const TestMlp mlp(GetParam().w, 200, 300, 0, 3);
  const TestRows x(GetParam().x, 11, 200, 4);
  const std::vector<float> all = Run(mlp, x, 11, 200, 300, 1, false);
  EXPECT_EQ(all, Run(mlp, x, 11, 200, 300, 2, false));
  EXPECT_EQ(all, Run(mlp, x, 11, 200, 300, 3, false));
  const std::vector<float> one = Run(mlp, x, 1, 200, 300, 2, false);
  EXPECT_TRUE(std::equal(one.begin(), one.end(), all.begin()));
}

INSTANTIATE_TEST_SUITE_P(All, DenseFfnTest, testing::ValuesIn(AllTypes()),
                         TypesName);

// Rows with their experts, and what GroupedFfn should make of them.
class GroupedFfnTest : public testing::TestWithParam<Types> {
 protected:
  static constexpr int kTopK = 3;

  void MakeExperts(int64_t num_experts, int64_t hidden, int64_t inter) {
    hidden_ = hidden;
    inter_ = inter;
    experts_.clear();
    views_.clear();
    for (int64_t e = 0; e < num_experts; ++e) {
      experts_.push_back(std::make_unique<TestMlp>(
          GetParam().w, hidden, inter, 0, static_cast<uint32_t>(1000 * e)));
      views_.push_back(experts_.back()->view());
    }
  }

  // A row's choice is a function of its number: different experts, some not
  // here.
  static int32_t Choice(int64_t row, int slot, int64_t num_experts) {
    const int64_t e = (row * 5 + slot * 3) % (num_experts + 2);
    return e < num_experts ? static_cast<int32_t>(e) : -1;
  }
  static float Weight(int64_t row, int slot) {
    return 0.5f + 0.25f * TestValue(9, row, slot);
  }

  // y of rows [first, first + rows).
  std::vector<float> Run(const TestRows& x, int64_t first, int64_t rows,
                         int threads) {
    std::vector<int32_t> chosen;
    std::vector<float> weights;
    for (int64_t r = first; r < first + rows; ++r) {
      for (int slot = 0; slot < kTopK; ++slot) {
        chosen.push_back(
            Choice(r, slot, static_cast<int64_t>(experts_.size())));
        weights.push_back(Weight(r, slot));
      }
    }
    ThreadPool pool(threads);
    std::vector<unsigned char> workspace(
        GroupedFfnWorkspaceBytes(rows, kTopK, hidden_, inter_, GetParam().x,
                                 static_cast<int64_t>(experts_.size())));
    std::vector<float> y(rows * hidden_, -1.0f);
    GroupedFfnArgs args;
    args.x = x.row(first);
    args.x_dtype = GetParam().x;
    args.rows = rows;
    args.top_k = kTopK;
    args.local_experts = chosen.data();
    args.weights = weights.data();
    args.experts = views_;
    args.hidden = hidden_;
    args.y = y.data();
    args.workspace = workspace.data();
    cpu::GroupedFfn(args, &pool);
    return y;
  }

  void ExpectExact(int64_t rows) {
    const TestRows x(GetParam().x, rows, hidden_, 2);
    const std::vector<float> y = Run(x, 0, rows, 2);
    for (int64_t r = 0; r < rows; ++r) {
      std::vector<double> expected(hidden_, 0);
      std::vector<double> tolerance(hidden_, 0);
      for (int slot = 0; slot < kTopK; ++slot) {
        const int32_t e =
            Choice(r, slot, static_cast<int64_t>(experts_.size()));
        if (e < 0) continue;
        const TestMlp::Result part = experts_[e]->Apply(x, r, GetParam().x);
        for (int64_t n = 0; n < hidden_; ++n) {
          expected[n] += Weight(r, slot) * part.y[n];
          tolerance[n] += Weight(r, slot) * part.tolerance[n] +
                          4 * 0x1p-24 * std::abs(part.y[n]);
        }
      }
      for (int64_t n = 0; n < hidden_; ++n) {
        ASSERT_NEAR(y[r * hidden_ + n], expected[n], tolerance[n])
            << "row " << r << " of " << rows << ", column " << n;
      }
    }
  }

  int64_t hidden_ = 0;
  int64_t inter_ = 0;
  std::vector<std::unique_ptr<TestMlp>> experts_;
  std::vector<GatedMlpWeights> views_;
};

TEST_P(GroupedFfnTest, EqualsDouble) {
  MakeExperts(7, 60, 35);
  for (int64_t rows : {1, 2, 13}) ExpectExact(rows);
  MakeExperts(4, 128, 128);
  ExpectExact(3);
}

TEST_P(GroupedFfnTest, EqualsDoubleWhereManyRowsShareAnExpert) {
  MakeExperts(1, 9, 10);
  ExpectExact(600);
}

TEST_P(GroupedFfnTest, BitsDependOnNeitherThreadsNorOtherRows) {
  MakeExperts(6, 150, 100);
  const TestRows x(GetParam().x, 20, 150, 3);
  const std::vector<float> all = Run(x, 0, 20, 1);
  EXPECT_EQ(all, Run(x, 0, 20, 2));
  EXPECT_EQ(all, Run(x, 0, 20, 3));
  for (int64_t r = 0; r < 20; ++r) {
    const std::vector<float> alone = Run(x, r, 1, 2);
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), all.begin() + r * 150))
        << "row " << r;
  }
}

// As the two ops one after the other.
TEST_P(GroupedFfnTest, AddsTheSharedExpertToItsRows) {
  MakeExperts(3, 24, 16);
  const TestMlp shared(GetParam().w, 24, 40, 0, 77);
  const GatedMlpWeights shared_view = shared.view();
  const TestRows x(GetParam().x, 5, 24, 3);
  const std::vector<int32_t> chosen = {0,  1, -1, 2,  0, 1, -1, -1,
                                       -1, 1, 2,  -1, 2, 1, 0};
  const std::vector<float> weights(5 * kTopK, 0.5f);
  std::vector<unsigned char> workspace(
      std::max(GroupedFfnWorkspaceBytes(5, kTopK, 24, 16, GetParam().x, 3),
               DenseFfnWorkspaceBytes(3, 40, GetParam().x)));
  std::vector<float> y(5 * 24, -1.0f);
  GroupedFfnArgs args;
  args.x = x.data();
  args.x_dtype = GetParam().x;
  args.rows = 5;
  args.top_k = kTopK;
  args.local_experts = chosen.data();
  args.weights = weights.data();
  args.experts = views_;
  args.hidden = 24;
  args.y = y.data();
  args.workspace = workspace.data();
  ThreadPool pool(2);
  cpu::GroupedFfn(args, &pool);
  std::vector<float> expected = y;
  DenseFfnArgs dense;
  dense.x = x.row(1);
  dense.x_dtype = GetParam().x;
  dense.rows = 3;
  dense.weights = shared_view;
  dense.y = expected.data() + 24;
  dense.accumulate = true;
  dense.workspace = workspace.data();
  cpu::DenseFfn(dense, &pool);
  args.shared = &shared_view;
  args.shared_begin = 1;
  args.shared_rows = 3;
  cpu::GroupedFfn(args, &pool);
  EXPECT_EQ(y, expected);
}

TEST_P(GroupedFfnTest, AddsToTheResidualStreamAndNorms) {
  MakeExperts(3, 24, 16);
  const TestRows x(GetParam().x, 2, 24, 3);
  const std::vector<int32_t> chosen = {0, 1, -1, 2, 0, 1};
  const std::vector<float> weights(2 * kTopK, 0.5f);
  std::vector<unsigned char> workspace(
      GroupedFfnWorkspaceBytes(2, kTopK, 24, 16, GetParam().x, 3));
  std::vector<float> y(2 * 24);
  GroupedFfnArgs args;
  args.x = x.data();
  args.x_dtype = GetParam().x;
  args.rows = 2;
  args.top_k = kTopK;
  args.local_experts = chosen.data();
  args.weights = weights.data();
  args.experts = views_;
  args.hidden = 24;
  args.y = y.data();
  args.workspace = workspace.data();
  ThreadPool pool(2);
  cpu::GroupedFfn(args, &pool);
  std::vector<float> sums(2 * 24), rms(2);
  for (int i = 0; i < 48; ++i) sums[i] = 1.0f + y[i];
  for (int r = 0; r < 2; ++r) {
    double squares = 0;
    for (int i = 0; i < 24; ++i)
      squares += double{sums[r * 24 + i]} * sums[r * 24 + i];
    rms[r] = static_cast<float>(std::sqrt(squares / 24 + 1e-3));
  }
  std::vector<float> residual(2 * 24, 1.0f), normed(2 * 24);
  const std::vector<float> norm_weight(24, 3.0f);
  ResidualNormArgs norm;
  norm.residual = residual.data();
  norm.norm_weight = norm_weight.data();
  norm.eps = 1e-3f;
  norm.normed = normed.data();
  args.norm = &norm;
  cpu::GroupedFfn(args, &pool);
  EXPECT_EQ(residual, sums);
  for (int i = 0; i < 48; ++i) {
    EXPECT_NEAR(normed[i], 3 * sums[i] / rms[i / 24], 1e-5) << i;
  }
}

TEST_P(GroupedFfnTest, WritesZeroWhereNoExpertIsHere) {
  MakeExperts(1, 16, 16);
  const TestRows x(GetParam().x, 2, 16, 3);
  const std::vector<int32_t> none(2 * kTopK, -1);
  const std::vector<float> weights(2 * kTopK, 1.0f);
  std::vector<unsigned char> workspace(
      GroupedFfnWorkspaceBytes(2, kTopK, 16, 16, GetParam().x, 1));
  std::vector<float> y(32, -1.0f);
  GroupedFfnArgs args;
  args.x = x.data();
  args.x_dtype = GetParam().x;
  args.rows = 2;
  args.top_k = kTopK;
  args.local_experts = none.data();
  args.weights = weights.data();
  args.hidden = 16;
  args.y = y.data();
  args.workspace = workspace.data();
  ThreadPool pool(2);
  cpu::GroupedFfn(args, &pool);  // a rank without experts
  EXPECT_EQ(y, std::vector<float>(32, 0.0f));
  y.assign(32, -1.0f);
  args.experts = views_;
  cpu::GroupedFfn(args, &pool);
  EXPECT_EQ(y, std::vector<float>(32, 0.0f));
  args.rows = 0;
  cpu::GroupedFfn(args, &pool);
}

INSTANTIATE_TEST_SUITE_P(All, GroupedFfnTest, testing::ValuesIn(AllTypes()),
                         TypesName);

}  // namespace
}  // namespace ring
