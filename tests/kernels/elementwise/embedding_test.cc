#include "kernels/elementwise/embedding.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/thread_pool.h"
#include "kernels/elementwise/scatter.h"
#include "tests/kernels/tensor_support.h"

namespace ring {
namespace {

using testing::ElementsAre;

// Embeds with a table whose row of id i is 100 i, 100 i + 1, 100 i + 2.
std::vector<float> Embed(const std::vector<int32_t>& tokens,
                         const std::vector<int32_t>& slots,
                         const std::vector<int32_t>& last_tokens,
                         int vocab_begin, int local_vocab, DType dtype) {
  constexpr int kCols = 3;
  constexpr int kStride = 5;
  std::vector<float> values(local_vocab * kStride, -1.0f);
  for (int i = 0; i < local_vocab; ++i) {
    for (int c = 0; c < kCols; ++c) {
      values[i * kStride + c] = 100 * (vocab_begin + i) + c;
    }
  }
  Tensor table(dtype, values);
  std::vector<float> out(tokens.size() * kCols, -9.0f);
  EmbeddingArgs args;
  args.tokens = tokens.data();
  args.token_slots = slots.data();
  args.last_tokens = last_tokens.data();
  args.rows = static_cast<int64_t>(tokens.size());
  args.table.data = table.data();
  args.table.dtype = dtype;
  args.table.rows = local_vocab;
  args.table.cols = kCols;
  args.table.row_stride = kStride;
  args.vocab_begin = vocab_begin;
  args.out = out.data();
  ThreadPool pool(2);
  cpu::Embedding(args, &pool);
  return out;
}

TEST(EmbeddingTest, TakesLiteralsAndLastTokensAndZerosTheRest) {
  // Rows: id 2; the last token of slot 1, id 3; padding; id 1 and id 4, which
  // other ranks hold.
  EXPECT_THAT(
      Embed({2, -1, -1, 1, 4}, {0, 1, -1, 0, 0}, {9, 3}, 2, 2, DType::kFloat32),
      ElementsAre(200, 201, 202, 300, 301, 302, 0, 0, 0, 0, 0, 0, 0, 0, 0));
  EXPECT_THAT(Embed({1, 0}, {0, 0}, {0}, 0, 2, DType::kBFloat16),
              ElementsAre(100, 101, 102, 0, 1, 2));
}

TEST(EmbeddingTest, SlicesAddUpToTheWhole) {
  const std::vector<int32_t> tokens = {0, 3, 6, 2};
  const std::vector<int32_t> slots(4, 0);
  const std::vector<float> whole =
      Embed(tokens, slots, {0}, 0, 7, DType::kFloat32);
  std::vector<float> sum(whole.size());
  const std::vector<int> cuts = {0, 3, 4, 7};
  for (int rank = 0; rank < 3; ++rank) {
    const std::vector<float> part =
        Embed(tokens, slots, {0}, cuts[rank], cuts[rank + 1] - cuts[rank],
              DType::kFloat32);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
  }
  EXPECT_EQ(sum, whole);
}

TEST(GatherRowsTest, PicksRowsOfEitherType) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    Tensor x(dtype, {0, 1, 10, 11, 20, 21});
    Tensor out(dtype, std::vector<float>(8, -9));
    const std::vector<int32_t> index = {2, -1, 0, 2};
    GatherRowsArgs args;
    args.x = x.data();
    args.dtype = dtype;
    args.cols = 2;
    args.index = index.data();
    args.count = 4;
    args.out = out.data();
    ThreadPool pool(1);
    cpu::GatherRows(args, &pool);
    std::vector<float> actual;
    for (int i = 0; i < 8; ++i) actual.push_back(out[i]);
    EXPECT_THAT(actual, ElementsAre(20, 21, 0, 0, 0, 1, 20, 21));
  }
}

TEST(LocalExpertsTest, MapsIdsAndLeavesPaddingOut) {
  const std::vector<int32_t> experts = {0, 3, 2, 1, 3, 3};
  const std::vector<int32_t> to_local = {-1, 0, -1, 1};
  const std::vector<int32_t> valid = {1, 1, 0};
  std::vector<int32_t> local(6, -9);
  LocalExpertsArgs args;
  args.experts = experts.data();
  args.rows = 3;
  args.top_k = 2;
  args.to_local = to_local.data();
  args.local = local.data();
  ThreadPool pool(1);
  cpu::LocalExperts(args, &pool);
  EXPECT_THAT(local, ElementsAre(-1, 1, -1, 0, 1, 1));
  args.row_valid = valid.data();
  cpu::LocalExperts(args, &pool);
  EXPECT_THAT(local, ElementsAre(-1, 1, -1, 0, -1, -1));
}

TEST(ScatterIntsTest, WritesInOrderAndSkipsPadding) {
  const std::vector<int32_t> index = {2, -1, 0, 2};
  const std::vector<int32_t> values = {5, 6, 7, 8};
  std::vector<int32_t> out = {1, 1, 1};
  ThreadPool pool(1);
  cpu::ScatterInts({index.data(), values.data(), 4, out.data()}, &pool);
  EXPECT_THAT(out, ElementsAre(7, 1, 8));
}

}  // namespace
}  // namespace ring
