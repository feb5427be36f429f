// Whole worker groups as threads: what must not change what a request gets.
#include <map>
#include <random>

#include "gtest/gtest.h"
#include "tests/support/golden_file.h"
#include "tests/support/mini_group.h"

namespace ring {
namespace {

MiniGroup::Options TinyOptions() {
  MiniGroup::Options options;
  options.model_dir = RingTinyDir();
  options.num_token_ids = 813;
  return options;
}

GenerationRequest Request(std::vector<int32_t> prompt, int new_tokens) {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.max_new_tokens = new_tokens;
  request.eos_token_ids = {807, 808};
  return request;
}

// GoldenTest runs all prompts in shared batches; here each runs alone.
TEST(GroupTest, AloneEqualsInABatch) {
  MiniGroup::Options options = TinyOptions();
  options.activation_dtype = DType::kBFloat16;
  auto group = MiniGroup::Start(options);
  ASSERT_TRUE(group.ok()) << group.status();
  for (const GoldenPrompt& golden : ReadGoldenPrompts()) {
    const Completion completion =
        (*group)->Run(Request(golden.prompt_ids, 160));
    EXPECT_EQ(completion.tokens, golden.completion_ids) << golden.prompt;
  }
}

// Decode steps padded and overlapped as for a device that works by itself.
TEST(GroupTest, PaddedOverlappedStepsChangeNothing) {
  for (const int dp : {1, 2}) {
    MiniGroup::Options options = TinyOptions();
    options.pad_decode_rows = true;
    options.overlap = true;
    options.load_on_backend = true;
    options.dp = dp;
    options.max_sequences = 7;
    options.replicated_rows = 64;
    auto group = MiniGroup::Start(options);
    ASSERT_TRUE(group.ok()) << group.status();
    const std::vector<GoldenPrompt> prompts = ReadGoldenPrompts();
    std::vector<uint64_t> ids;
    for (const GoldenPrompt& golden : prompts) {
      ids.push_back((*group)->Submit(Request(golden.prompt_ids, 160)));
    }
    for (size_t i = 0; i < ids.size(); ++i) {
      EXPECT_EQ((*group)->Wait(ids[i]).tokens, prompts[i].completion_ids)
          << prompts[i].prompt;
    }
  }
}

// A prompt of 2,100 tokens in pieces of several sizes, beside other sequences.
TEST(GroupTest, PromptPiecesDoNotChangeTheAnswer) {
  const GoldenPrompt golden = ReadGoldenPrompts().back();
  ASSERT_GT(golden.prompt_ids.size(), 2000u);
  for (const int64_t max_batch_tokens : {72, 200, 4096}) {
    MiniGroup::Options options = TinyOptions();
    options.max_batch_tokens = max_batch_tokens;
    options.tp = 2;
    auto group = MiniGroup::Start(options);
    ASSERT_TRUE(group.ok()) << group.status();
    std::vector<uint64_t> others;
    for (int i = 0; i < 3; ++i) {
      GenerationRequest other = Request({809, 39, 265, 810 - i}, 60);
      other.eos_token_ids.clear();
      others.push_back((*group)->Submit(other));
    }
    const Completion completion =
        (*group)->Run(Request(golden.prompt_ids, 160));
    EXPECT_EQ(completion.tokens, golden.completion_ids) << max_batch_tokens;
    for (const uint64_t id : others) {
      EXPECT_EQ((*group)->Wait(id).tokens.size(), 60u);
    }
  }
}

// A completion that goes on from its own tokens, as after a move to another
// group, ends the same.
TEST(GroupTest, ContinuationEqualsTheUndisturbedCompletion) {
  auto group = MiniGroup::Start(TinyOptions());
  ASSERT_TRUE(group.ok()) << group.status();
  const GoldenPrompt golden = ReadGoldenPrompts()[0];
  GenerationRequest request = Request(golden.prompt_ids, 160);
  request.generated.assign(golden.completion_ids.begin(),
                           golden.completion_ids.begin() + 20);
  const Completion completion = (*group)->Run(request);
  EXPECT_EQ(completion.tokens,
            std::vector<int32_t>(golden.completion_ids.begin() + 20,
                                 golden.completion_ids.end()));
}

// The same seed draws the same tokens on every mesh and in every batch.
TEST(GroupTest, SampledTokensDoNotDependOnMeshOrBatch) {
  const GoldenPrompt golden = ReadGoldenPrompts()[3];
  std::vector<int32_t> first;
  for (const auto& [dp, tp] : {std::pair{1, 1}, {1, 4}, {2, 2}}) {
    MiniGroup::Options options = TinyOptions();
    options.dp = dp;
    options.tp = tp;
    auto group = MiniGroup::Start(options);
    ASSERT_TRUE(group.ok()) << group.status();
    std::vector<uint64_t> ids;
    for (int i = 0; i < 4; ++i) {
      GenerationRequest request = Request(golden.prompt_ids, 40);
      request.sampling.temperature = 1.3f;
      request.sampling.top_k = 200;
      request.sampling.top_p = 0.98f;
      request.sampling.seed = 42;
      ids.push_back((*group)->Submit(request));
    }
    for (const uint64_t id : ids) {
      const Completion completion = (*group)->Wait(id);
      ASSERT_TRUE(completion.error.ok()) << completion.error;
      if (first.empty()) first = completion.tokens;
      EXPECT_EQ(completion.tokens, first) << "dp " << dp << " tp " << tp;
    }
  }
}

// Arrivals, lengths and cancels at random through real ranks: everybody gets
// all tokens, and nothing is left over. With DCHECKs every rank compares the
// hash of every plan.
TEST(GroupTest, ServesRandomArrivals) {
  MiniGroup::Options options = TinyOptions();
  options.dp = 2;
  options.tp = 2;
  options.max_batch_tokens = 96;
  auto group = MiniGroup::Start(options);
  ASSERT_TRUE(group.ok()) << group.status();
  std::mt19937 random(11);
  struct Wanted {
    int tokens = 0;
    int completions = 0;
  };
  std::map<uint64_t, Wanted> wanted;
  const auto submit = [&](int longest_prompt, int most_tokens) {
    std::vector<int32_t> prompt(1 + random() % longest_prompt);
    for (int32_t& id : prompt) id = static_cast<int32_t>(random() % 813);
    const int new_tokens = 1 + static_cast<int>(random() % most_tokens);
    GenerationRequest request = Request(prompt, new_tokens);
    request.eos_token_ids.clear();
    request.num_completions = random() % 5 == 0 ? 3 : 1;
    const uint64_t id = (*group)->Submit(request);
    wanted[id] = {new_tokens, request.num_completions};
    return id;
  };
  const auto cancel = [&](uint64_t id) {
    (*group)->Cancel(id);
    wanted.erase(id);
  };
  std::vector<uint64_t> long_ones;
  for (int i = 0; i < 1000; ++i) {
    const uint64_t id = submit(24, 6);
    if (random() % 10 == 0) cancel(id);
    // Prompts of several pages and steps. Every other one is cancelled later:
    // while it waits, in its prompt, in its answer, or when it has ended.
    if (i % 24 == 0) long_ones.push_back(submit(300, 40));
    if (i % 48 == 47) cancel(long_ones[random() % long_ones.size()]);
    // Waiting for the newest now and then keeps the queue short.
    if (i % 16 == 15) (*group)->Wait(wanted.rbegin()->first);
  }
  for (const auto& [id, each] : wanted) {
    for (int i = 0; i < each.completions; ++i) {
      const Completion completion = (*group)->Wait(id, i);
      ASSERT_TRUE(completion.error.ok()) << completion.error;
      EXPECT_EQ(completion.tokens.size(), static_cast<size_t>(each.tokens));
    }
  }
  // One more request lets the last cancels be taken in.
  EXPECT_TRUE((*group)->Run(Request({1, 2, 3}, 1)).error.ok());
  const LoadReport load = (*group)->load();
  EXPECT_EQ(load.running + load.queued, 0);
  EXPECT_EQ(load.free_slots, options.dp * options.max_sequences);
  EXPECT_EQ(load.free_pages, options.dp * options.kv_tokens / 64);
}

}  // namespace
}  // namespace ring
