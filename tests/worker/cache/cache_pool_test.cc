// Copies of a sequence's cache, as a plan asks for them.
#include "worker/cache/cache_pool.h"

#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "parallel/thread_communicator.h"
#include "ring/v1/plan.pb.h"
#include "tests/support/mini_group.h"
#include "tests/support/test_rank.h"

namespace ring {
namespace {

constexpr int kSlots = 4;
constexpr int kPages = 4;

// One rank of ring-tiny.
class CacheCopyTest : public testing::Test {
 protected:
  void SetUp() override {
    MiniGroup::Options options;
    options.model_dir = RingTinyDir();
    options.max_sequences = kSlots;
    options.kv_tokens = kPages * 64;
    options.max_batch_tokens = 128;
    options.max_context = 64;
    auto file = ReadModelConfig(options.model_dir);
    ASSERT_TRUE(file.ok()) << file.status();
    config_ = std::move(file->config);
    const absl::Status built = BuildTestRank(
        options, config_, 0,
        [&](const Mesh& mesh, const BlockCommunicator::Options& blocks) {
          return world_.Communicators(mesh, blocks);
        },
        &rank_);
    ASSERT_TRUE(built.ok()) << built;
  }

  v1::BatchPlan NewPlan(int rows) {
    v1::BatchPlan plan;
    plan.set_kind(v1::BatchPlan::STEP);
    plan.set_step(next_step_++);
    plan.set_exchange(v1::BatchPlan::REPLICATED);
    plan.set_padded_rows(rows);
    plan.set_num_token_ids(813);
    plan.add_groups();
    return plan;
  }

  // Adds a segment of `sequence`, whose state lies in the slot of the same
  // number, and samples its last row greedily.
  static void Add(int sequence, int position, const std::vector<int>& tokens,
                  v1::GroupPlan* group) {
    int row = static_cast<int>(tokens.size()) - 1;
    for (const v1::Segment& before : group->segments()) {
      row += before.tokens_size();
    }
    v1::Segment* const segment = group->add_segments();
    segment->set_sequence(sequence);
    segment->set_position(position);
    segment->set_prompt(position == 0);
    segment->set_state_in(position == 0 ? -1 : sequence);
    segment->set_state_out(sequence);
    for (const int token : tokens) segment->add_tokens(token);
    v1::Sample* const sample = group->add_samples();
    sample->set_row(row);
    sample->set_sequence(sequence);
    sample->set_position(position + static_cast<int>(tokens.size()));
  }

  static void SetPage(int sequence, int page, v1::GroupPlan* group) {
    v1::PageEntry* const entry = group->add_page_entries();
    entry->set_sequence(sequence);
    entry->set_page(page);
  }

  v1::StepResult Step(const v1::BatchPlan& plan) {
    const absl::StatusOr<v1::StepResult> result = rank_.engine->Step(plan);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.value_or(v1::StepResult());
  }

  ModelConfig config_;
  ThreadWorld world_{1, 1};
  TestRank rank_;
  int next_step_ = 0;
};

TEST_F(CacheCopyTest, CopiesEveryLayerAndNothingElse) {
  CachePool& cache = rank_.engine->cache();
  const int64_t slot =
      rank_.mesh->heads().size() * config_.head_dim * config_.head_dim;
  // fp32, as the activations of this rank.
  const int64_t page =
      rank_.mesh->kv_heads().size() * 64 * int64_t{config_.head_dim};
  std::vector<std::pair<float*, int64_t>> pools;  // and floats of an entry
  for (int layer = 0; layer < config_.num_hidden_layers; ++layer) {
    if (config_.IsSoftmaxLayer(layer)) {
      pools.emplace_back(static_cast<float*>(cache.KeyPages(layer)), page);
      pools.emplace_back(static_cast<float*>(cache.ValuePages(layer)), page);
    } else {
      pools.emplace_back(cache.States(layer), slot);
    }
  }
  const auto value = [](size_t pool, int64_t i) {
    return static_cast<float>(pool * 7919 + i);
  };
  for (size_t p = 0; p < pools.size(); ++p) {
    const auto [data, floats] = pools[p];
    for (int64_t i = 0; i < 4 * floats; ++i) data[i] = value(p, i);
  }
  cache.CopySlot(1, 3);
  cache.CopyPage(2, 0);
  for (size_t p = 0; p < pools.size(); ++p) {
    const auto [data, floats] = pools[p];
    const bool states = floats == slot;
    for (int64_t i = 0; i < 4 * floats; ++i) {
      int64_t from = i;
      if (states && i / floats == 3) from = i - 2 * floats;
      if (!states && i / floats == 0) from = i + 2 * floats;
      ASSERT_EQ(data[i], value(p, from)) << "pool " << p << " element " << i;
    }
  }
}

TEST_F(CacheCopyTest, ACopiedSequenceGoesOnLikeTheOriginalOfItsOwn) {
  v1::BatchPlan prompt = NewPlan(5);
  v1::GroupPlan* group = prompt.mutable_groups(0);
  SetPage(0, 0, group);
  Add(0, 0, {809, 39, 265, 12, 7}, group);
  // Sequence 2 takes what the step leaves, in slot 2 and page 3.
  v1::CacheCopy* const state = group->add_state_copies();
  state->set_from(0);
  state->set_to(2);
  v1::CacheCopy* const page = group->add_page_copies();
  page->set_from(0);
  page->set_to(3);
  SetPage(2, 3, group);
  Step(prompt);

  v1::BatchPlan fork = NewPlan(2);
  group = fork.mutable_groups(0);
  Add(0, 5, {100}, group);
  Add(2, 5, {100}, group);
  const v1::StepResult both = Step(fork);
  EXPECT_EQ(both.samples(0).token(), both.samples(1).token());
  EXPECT_EQ(both.samples(0).logprob(), both.samples(1).logprob());

  // Other tokens in one leave the other as it is.
  v1::BatchPlan apart = NewPlan(2);
  Add(0, 6, {200}, apart.mutable_groups(0));
  Add(2, 6, {300}, apart.mutable_groups(0));
  const v1::StepResult different = Step(apart);
  EXPECT_NE(different.samples(0).logprob(), different.samples(1).logprob());

  // Sequence 1 has all of sequence 2's tokens from the start.
  v1::BatchPlan whole = NewPlan(7);
  SetPage(1, 1, whole.mutable_groups(0));
  Add(1, 0, {809, 39, 265, 12, 7, 100, 300}, whole.mutable_groups(0));
  const v1::StepResult alone = Step(whole);
  EXPECT_EQ(alone.samples(0).token(), different.samples(1).token());
  // The prompt's kernels add in another order.
  EXPECT_NEAR(alone.samples(0).logprob(), different.samples(1).logprob(), 1e-3);
}

}  // namespace
}  // namespace ring
