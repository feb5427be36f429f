#include "worker/scheduler.h"

#include <limits>
#include <map>
#include <random>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/paged_attention/paged_attention.h"
#include "ring/v1/plan.pb.h"
#include "worker/decode_bucket.h"

namespace ring {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Scheduler::Options SmallOptions() {
  Scheduler::Options options;
  options.cache = {.num_slots = 4, .num_pages = 64};
  options.max_batch_tokens = 128;
  options.max_context = 1024;
  options.max_queued = 8;
  return options;
}

GenerationRequest Request(uint64_t id, int prompt_tokens, int new_tokens) {
  GenerationRequest request;
  request.id = id;
  for (int i = 0; i < prompt_tokens; ++i) request.prompt.push_back(i % 100);
  request.max_new_tokens = new_tokens;
  return request;
}

// Stands in for the ranks: checks that a plan is consistent with what came
// before, and draws token number i of a sequence as 1000 + i.
class FakeGroup {
 public:
  explicit FakeGroup(const Scheduler::Options& options) : options_(options) {}

  v1::StepResult Run(const v1::GroupPlan& plan) {
    for (const v1::PageEntry& entry : plan.page_entries()) {
      EXPECT_LT(entry.page(), options_.cache.num_pages);
      page_table_[entry.sequence()][entry.index()] = entry.page();
    }
    std::set<int> sequences;
    int64_t rows = 0;
    bool prompts_begun = false;
    std::map<int, int64_t> last_row;
    for (const v1::Segment& segment : plan.segments()) {
      EXPECT_TRUE(sequences.insert(segment.sequence()).second);
      prompts_begun = prompts_begun || segment.prompt();
      EXPECT_EQ(segment.prompt(), prompts_begun) << "decode rows come first";
      EXPECT_GE(segment.tokens_size(), 1);
      if (segment.position() == 0) {
        EXPECT_EQ(segment.state_in(), -1);
        length_[segment.sequence()] = 0;
      } else {
        EXPECT_EQ(segment.state_in(), segment.sequence());
      }
      EXPECT_EQ(segment.position(), length_[segment.sequence()]);
      length_[segment.sequence()] += segment.tokens_size();
      for (int p = 0; p < length_[segment.sequence()]; p += kPageTokens) {
        EXPECT_TRUE(page_table_[segment.sequence()].count(p / kPageTokens) > 0);
      }
      rows += segment.tokens_size();
      last_row[segment.sequence()] = rows - 1;
    }
    EXPECT_LE(rows, options_.max_batch_tokens);
    // Sequences that begin with what others have in this step.
    for (const v1::CacheCopy& copy : plan.state_copies()) {
      EXPECT_TRUE(sequences.insert(copy.to()).second);
      length_[copy.to()] = length_[copy.from()];
      last_row[copy.to()] = last_row.at(copy.from());
      for (int64_t p = 0; p < length_[copy.to()]; p += kPageTokens) {
        const auto index = static_cast<int>(p / kPageTokens);
        const bool filled = p + kPageTokens <= length_[copy.to()];
        EXPECT_EQ(page_table_[copy.to()].at(index) ==
                      page_table_[copy.from()].at(index),
                  filled)
            << "page " << index;
      }
    }
    v1::StepResult result;
    for (const v1::Sample& sample : plan.samples()) {
      if (sample.has_given()) {
        EXPECT_EQ(sample.sequence(), -1);
        EXPECT_LT(sample.row(), rows);
        result.add_samples()->set_token(sample.given());
        continue;
      }
      EXPECT_EQ(sample.row(), last_row.at(sample.sequence()));
      EXPECT_EQ(sample.position(), length_[sample.sequence()]);
      v1::SampleResult* const drawn = result.add_samples();
      drawn->set_token(next_token_ >= 0 ? next_token_ : 1000);
      drawn->set_logprob(-0.5f);
    }
    return result;
  }

  void set_next_token(int token) { next_token_ = token; }

 private:
  const Scheduler::Options options_;
  std::map<int, std::map<int, int>> page_table_;
  std::map<int, int64_t> length_;
  int next_token_ = -1;
};

// One plan after the other until nothing is left to do.
std::vector<TokenEvent> RunAll(Scheduler* scheduler,
                               std::vector<FakeGroup>* groups,
                               int max_steps = 10000) {
  std::vector<TokenEvent> events;
  v1::BatchPlan plan;
  for (int step = 0; step < max_steps && scheduler->HasWork(); ++step) {
    if (scheduler->NextPlan(&plan)) {
      std::vector<v1::StepResult> results;
      for (size_t g = 0; g < groups->size(); ++g) {
        results.push_back((*groups)[g].Run(plan.groups(static_cast<int>(g))));
      }
      scheduler->Commit(results);
    }
    for (TokenEvent& event : scheduler->TakeEvents()) {
      events.push_back(std::move(event));
    }
  }
  EXPECT_FALSE(scheduler->HasWork());
  return events;
}

void ExpectAllFree(const Scheduler& scheduler,
                   const Scheduler::Options& options) {
  const LoadReport load = scheduler.Load();
  EXPECT_EQ(load.free_pages, options.cache.num_pages * options.data_parallel);
  EXPECT_EQ(load.free_slots, options.cache.num_slots * options.data_parallel);
  EXPECT_EQ(load.queued, 0);
  EXPECT_EQ(load.running, 0);
}

TEST(SchedulerTest, PlansPromptInPiecesThenDecodes) {
  const Scheduler::Options options = SmallOptions();
  Scheduler scheduler(options);
  std::vector<FakeGroup> groups(1, FakeGroup(options));
  ASSERT_TRUE(scheduler.Submit(Request(1, 300, 3)).ok());
  std::vector<int> rows;
  std::vector<TokenEvent> events;
  v1::BatchPlan plan;
  while (scheduler.HasWork() && scheduler.NextPlan(&plan)) {
    rows.push_back(plan.groups(0).segments(0).tokens_size());
    scheduler.Commit({groups[0].Run(plan.groups(0))});
    for (TokenEvent& event : scheduler.TakeEvents()) events.push_back(event);
  }
  EXPECT_THAT(rows, ElementsAre(128, 128, 44, 1, 1));
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[2].start_index, 2);
  EXPECT_EQ(events[2].finish, FinishReason::kLength);
  ExpectAllFree(scheduler, options);
}

TEST(SchedulerTest, DecodesGoOnBesideALongPrompt) {
  const Scheduler::Options options = SmallOptions();
  Scheduler scheduler(options);
  FakeGroup group(options);
  ASSERT_TRUE(scheduler.Submit(Request(1, 10, 50)).ok());
  v1::BatchPlan plan;
  ASSERT_TRUE(scheduler.NextPlan(&plan));
  scheduler.Commit({group.Run(plan.groups(0))});
  ASSERT_TRUE(scheduler.Submit(Request(2, 900, 1)).ok());
  for (int step = 0; step < 5; ++step) {
    ASSERT_TRUE(scheduler.NextPlan(&plan));
    ASSERT_EQ(plan.groups(0).segments_size(), 2);
    EXPECT_FALSE(plan.groups(0).segments(0).prompt());
    EXPECT_TRUE(plan.groups(0).segments(1).prompt());
    // 127 rows are left, cut at a multiple of 64.
    EXPECT_EQ(plan.groups(0).segments(1).tokens_size(), 64);
    scheduler.Commit({group.Run(plan.groups(0))});
  }
}

TEST(SchedulerTest, StopsAtEosAndStopTokens) {
  const Scheduler::Options options = SmallOptions();
  Scheduler scheduler(options);
  std::vector<FakeGroup> groups(1, FakeGroup(options));
  groups[0].set_next_token(7);
  GenerationRequest eos = Request(1, 5, 50);
  eos.eos_token_ids = {7};
  eos.stop_token_ids = {7};
  GenerationRequest stop = Request(2, 5, 50);
  stop.stop_token_ids = {3, 7};
  ASSERT_TRUE(scheduler.Submit(eos).ok());
  ASSERT_TRUE(scheduler.Submit(stop).ok());
  const std::vector<TokenEvent> events = RunAll(&scheduler, &groups);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].finish, FinishReason::kEos);
  EXPECT_THAT(events[0].tokens, ElementsAre(7));
  EXPECT_EQ(events[1].finish, FinishReason::kStopToken);
  ExpectAllFree(scheduler, options);
}

TEST(SchedulerTest, PlansSayWhatIsAdjustedAndOnlyThat) {
  const Scheduler::Options options = SmallOptions();
  Scheduler scheduler(options);
  FakeGroup group(options);
  ASSERT_TRUE(scheduler.Submit(Request(1, 5, 4)).ok());
  GenerationRequest penalty = Request(2, 200, 4);
  penalty.generated = {50, 51};
  penalty.sampling.frequency_penalty = 0.5f;
  ASSERT_TRUE(scheduler.Submit(penalty).ok());
  GenerationRequest mask = Request(3, 5, 4);
  mask.eos_token_ids = {7};
  mask.stop_token_ids = {8, 9};
  mask.min_new_tokens = 2;
  ASSERT_TRUE(scheduler.Submit(mask).ok());

  // The first pieces of all prompts, with what the ranks have to know.
  v1::BatchPlan plan;
  ASSERT_TRUE(scheduler.NextPlan(&plan));
  const v1::GroupPlan* group_plan = &plan.groups(0);
  ASSERT_EQ(group_plan->segments_size(), 3);
  EXPECT_EQ(group_plan->segments(0).counted_prompt(), 0);
  EXPECT_EQ(group_plan->segments(1).counted_prompt(), 200);
  EXPECT_EQ(group_plan->segments(2).counted_prompt(), 0);
  ASSERT_EQ(group_plan->adjustment_starts_size(), 2);
  const v1::AdjustmentStart counted = group_plan->adjustment_starts(0);
  EXPECT_EQ(counted.sequence(), group_plan->segments(1).sequence());
  EXPECT_TRUE(counted.counts());
  EXPECT_EQ(counted.edit_ids_size(), 0);
  const v1::AdjustmentStart masked = group_plan->adjustment_starts(1);
  EXPECT_FALSE(masked.counts());
  EXPECT_THAT(masked.edit_ids(), ElementsAre(7, 8, 9));
  EXPECT_THAT(masked.edit_biases(),
              testing::Each(-std::numeric_limits<float>::infinity()));
  ASSERT_EQ(group_plan->samples_size(), 2);  // the long prompt goes on
  EXPECT_FALSE(group_plan->samples(0).has_adjustment());
  EXPECT_EQ(group_plan->samples(1).adjustment().num_edits(), 3);
  EXPECT_EQ(group_plan->samples(1).adjustment().repetition_penalty(), 1);
  scheduler.Commit({group.Run(*group_plan)});

  for (int step = 1; step < 4; ++step) {
    ASSERT_TRUE(scheduler.NextPlan(&plan));
    group_plan = &plan.groups(0);
    EXPECT_EQ(group_plan->adjustment_starts_size(), 0);
    for (int i = 0; i < group_plan->samples_size(); ++i) {
      const v1::Sample& sample = group_plan->samples(i);
      if (sample.sequence() == counted.sequence()) {
        EXPECT_EQ(sample.adjustment().frequency_penalty(), 0.5f);
      } else {
        EXPECT_EQ(sample.has_adjustment(),
                  sample.sequence() == masked.sequence() && step < 2);
      }
    }
    // Drawn tokens are not among those that are given.
    for (const v1::Segment& segment : group_plan->segments()) {
      EXPECT_EQ(segment.counted_prompt() > 0, segment.tokens(0) >= 0);
    }
    scheduler.Commit({group.Run(*group_plan)});
  }
}

TEST(SchedulerTest, RefusesMoreEditsThanFit) {
  Scheduler scheduler(SmallOptions());
  GenerationRequest request = Request(1, 5, 4);
  request.eos_token_ids.assign(100, 1);
  request.sampling.logit_bias.assign(1052, {});
  EXPECT_TRUE(scheduler.Submit(request).ok());
  request.id = 2;
  request.sampling.logit_bias.push_back({});
  EXPECT_TRUE(scheduler.Submit(request).ok());  // ends are not masked
  request.id = 3;
  request.min_new_tokens = 1;
  EXPECT_THAT(std::string(scheduler.Submit(request).message()),
              HasSubstr("1053 biases and the ids that end the completion are "
                        "1153, at most 1152 fit"));
}

TEST(SchedulerTest, EndsAtTheContext) {
  Scheduler::Options options = SmallOptions();
  options.max_context = 100;
  Scheduler scheduler(options);
  std::vector<FakeGroup> groups(1, FakeGroup(options));
  ASSERT_TRUE(scheduler.Submit(Request(1, 98, 50)).ok());
  const std::vector<TokenEvent> events = RunAll(&scheduler, &groups);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[1].finish, FinishReason::kContextFull);
}

TEST(SchedulerTest, RefusesWhatNeverFits) {
  Scheduler::Options options = SmallOptions();
  options.cache.num_pages = 4;
  Scheduler scheduler(options);
  const absl::Status status = scheduler.Submit(Request(1, 256, 1));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("256 tokens"));
  EXPECT_FALSE(scheduler.Submit(Request(2, 0, 1)).ok());
  GenerationRequest finished = Request(3, 4, 2);
  finished.generated = {1, 2};
  EXPECT_FALSE(scheduler.Submit(finished).ok());
}

TEST(SchedulerTest, BoundsItsQueue) {
  const Scheduler::Options options = SmallOptions();
  Scheduler scheduler(options);
  for (int i = 0; i < options.max_queued; ++i) {
    ASSERT_TRUE(scheduler.Submit(Request(i, 4, 4)).ok());
  }
  EXPECT_EQ(scheduler.Submit(Request(99, 4, 4)).code(),
            absl::StatusCode::kResourceExhausted);
  v1::BatchPlan plan;
  ASSERT_TRUE(scheduler.NextPlan(&plan));
  EXPECT_EQ(scheduler.Load().running, 4);
  EXPECT_EQ(scheduler.Load().queued, 4);
  EXPECT_TRUE(scheduler.Submit(Request(99, 4, 4)).ok());
}

TEST(SchedulerTest, CancelFreesEverythingAtTheNextPlan) {
  const Scheduler::Options options = SmallOptions();
  Scheduler scheduler(options);
  FakeGroup group(options);
  for (int i = 0; i < 6; ++i) {
    ASSERT_TRUE(scheduler.Submit(Request(i, 100, 100)).ok());
  }
  v1::BatchPlan plan;
  ASSERT_TRUE(scheduler.NextPlan(&plan));
  scheduler.Commit({group.Run(plan.groups(0))});
  for (int i = 0; i < 6; ++i) scheduler.Cancel(i);  // running and waiting
  scheduler.Cancel(1234);
  EXPECT_FALSE(scheduler.NextPlan(&plan));
  ExpectAllFree(scheduler, options);
  EXPECT_FALSE(scheduler.HasWork());
}

TEST(SchedulerTest, KeepsMemoryOfEndedSequencesUntilTheirPlansAreIn) {
  const Scheduler::Options options = SmallOptions();
  Scheduler scheduler(options);
  FakeGroup group(options);
  GenerationRequest request = Request(1, 4, 100);
  request.eos_token_ids = {1000};
  ASSERT_TRUE(scheduler.Submit(request).ok());
  v1::BatchPlan first, second;
  ASSERT_TRUE(scheduler.NextPlan(&first));
  ASSERT_TRUE(scheduler.NextPlan(&second));  // before the first result
  EXPECT_EQ(second.groups(0).segments(0).tokens(0), -1);
  scheduler.Commit({group.Run(first.groups(0))});
  EXPECT_EQ(scheduler.Load().free_slots, options.cache.num_slots - 1);
  v1::BatchPlan none;
  EXPECT_FALSE(scheduler.NextPlan(&none));
  scheduler.Commit({group.Run(second.groups(0))});
  const std::vector<TokenEvent> events = scheduler.TakeEvents();
  ASSERT_EQ(events.size(), 1u);  // the second result is discarded
  EXPECT_EQ(events[0].finish, FinishReason::kEos);
  ExpectAllFree(scheduler, options);
}

TEST(SchedulerTest, ReportsLogitsThatAreNotNumbers) {
  const Scheduler::Options options = SmallOptions();
  Scheduler scheduler(options);
  ASSERT_TRUE(scheduler.Submit(Request(1, 4, 100)).ok());
  v1::BatchPlan plan;
  ASSERT_TRUE(scheduler.NextPlan(&plan));
  v1::StepResult result;
  result.add_samples()->set_token(-1);
  scheduler.Commit({result});
  const std::vector<TokenEvent> events = scheduler.TakeEvents();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].error.code(), absl::StatusCode::kInternal);
  ExpectAllFree(scheduler, options);
}

TEST(SchedulerTest, DropsExpiredRequests) {
  const Scheduler::Options options = SmallOptions();
  Scheduler scheduler(options);
  GenerationRequest request = Request(1, 4, 100);
  request.deadline = std::chrono::steady_clock::now();
  ASSERT_TRUE(scheduler.Submit(request).ok());
  v1::BatchPlan plan;
  EXPECT_FALSE(scheduler.NextPlan(&plan));
  const std::vector<TokenEvent> events = scheduler.TakeEvents();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].error.code(), absl::StatusCode::kDeadlineExceeded);
  ExpectAllFree(scheduler, options);
}

GenerationRequest Completions(uint64_t id, int prompt_tokens, int new_tokens,
                              int completions) {
  GenerationRequest request = Request(id, prompt_tokens, new_tokens);
  request.num_completions = completions;
  return request;
}

TEST(CompletionsTest, ShareThePromptAndItsPages) {
  const Scheduler::Options options = SmallOptions();
  Scheduler scheduler(options);
  FakeGroup group(options);
  GenerationRequest request = Completions(1, 150, 3, 3);
  request.sampling.seed = 40;
  request.sampling.frequency_penalty = 1;
  ASSERT_TRUE(scheduler.Submit(request).ok());
  v1::BatchPlan plan;
  ASSERT_TRUE(scheduler.NextPlan(&plan));
  // Two pages that the prompt fills, and one for each completion.
  EXPECT_EQ(scheduler.Load().free_pages, options.cache.num_pages - 2 - 3);
  EXPECT_EQ(scheduler.Load().free_slots, options.cache.num_slots - 3);
  EXPECT_EQ(plan.groups(0).segments_size(), 1);
  EXPECT_EQ(plan.groups(0).samples_size(), 0);
  EXPECT_EQ(plan.groups(0).state_copies_size(), 0);
  scheduler.Commit({group.Run(plan.groups(0))});

  // The end of the prompt is computed once, and drawn from by all.
  ASSERT_TRUE(scheduler.NextPlan(&plan));
  const v1::GroupPlan& last = plan.groups(0);
  ASSERT_EQ(last.segments_size(), 1);
  EXPECT_EQ(last.segments(0).tokens_size(), 150 - 128);
  ASSERT_EQ(last.samples_size(), 3);
  EXPECT_EQ(last.state_copies_size(), 2);
  EXPECT_EQ(last.page_copies_size(), 2);
  EXPECT_EQ(last.adjustment_copies_size(), 2);
  std::set<uint64_t> seeds;
  for (const v1::Sample& sample : last.samples()) {
    EXPECT_EQ(sample.row(), 150 - 128 - 1);
    EXPECT_EQ(sample.position(), 150);
    seeds.insert(sample.seed());
  }
  EXPECT_EQ(last.samples(0).seed(), 40u);
  EXPECT_EQ(seeds.size(), 3u);
  scheduler.Commit({group.Run(last)});

  // Then each has its rows.
  ASSERT_TRUE(scheduler.NextPlan(&plan));
  EXPECT_EQ(plan.groups(0).segments_size(), 3);
  EXPECT_TRUE(plan.decode_only());
  EXPECT_EQ(plan.groups(0).state_copies_size(), 0);
  scheduler.Commit({group.Run(plan.groups(0))});
  std::vector<FakeGroup> groups = {group};
  std::map<int, size_t> tokens;
  for (const TokenEvent& event : RunAll(&scheduler, &groups)) {
    EXPECT_EQ(event.start_index,
              static_cast<int64_t>(tokens[event.completion]));
    tokens[event.completion] += event.tokens.size();
  }
  EXPECT_EQ(tokens, (std::map<int, size_t>{{0, 3}, {1, 3}, {2, 3}}));
  ExpectAllFree(scheduler, options);
}

// A token that ends completion 0 at once leaves its state to nobody's harm.
TEST(CompletionsTest, EndOneByOne) {
  const Scheduler::Options options = SmallOptions();
  Scheduler scheduler(options);
  GenerationRequest request = Completions(1, 70, 10, 3);
  request.eos_token_ids = {7};
  ASSERT_TRUE(scheduler.Submit(request).ok());
  v1::BatchPlan plan;
  ASSERT_TRUE(scheduler.NextPlan(&plan));
  v1::StepResult result;
  for (const int token : {7, 3, 3}) result.add_samples()->set_token(token);
  scheduler.Commit({result});
  EXPECT_EQ(scheduler.Load().free_slots, options.cache.num_slots - 2);
  scheduler.CancelCompletion(1, 2);
  scheduler.CancelCompletion(1, 0);  // has ended
  ASSERT_TRUE(scheduler.NextPlan(&plan));
  EXPECT_EQ(plan.groups(0).segments_size(), 1);
  EXPECT_EQ(scheduler.Load().free_slots, options.cache.num_slots - 1);
  scheduler.Cancel(1);
  v1::StepResult one;
  one.add_samples()->set_token(3);
  scheduler.Commit({one});
  EXPECT_FALSE(scheduler.NextPlan(&plan));
  ExpectAllFree(scheduler, options);
}

TEST(CompletionsTest, OneIsNotCancelledBeforeItsFirstToken) {
  const Scheduler::Options options = SmallOptions();
  Scheduler scheduler(options);
  std::vector<FakeGroup> groups(1, FakeGroup(options));
  ASSERT_TRUE(scheduler.Submit(Completions(1, 300, 2, 2)).ok());
  v1::BatchPlan plan;
  ASSERT_TRUE(scheduler.NextPlan(&plan));
  scheduler.Commit({groups[0].Run(plan.groups(0))});
  scheduler.CancelCompletion(1, 0);
  scheduler.CancelCompletion(1, 1);
  EXPECT_EQ(RunAll(&scheduler, &groups).size(), 4u);
  ExpectAllFree(scheduler, options);
}

TEST(CompletionsTest, CancelInThePromptFreesAll) {
  const Scheduler::Options options = SmallOptions();
  Scheduler scheduler(options);
  ASSERT_TRUE(scheduler.Submit(Completions(1, 300, 20, 4)).ok());
  v1::BatchPlan first, second;
  ASSERT_TRUE(scheduler.NextPlan(&first));
  ASSERT_TRUE(scheduler.NextPlan(&second));
  scheduler.Cancel(1);
  v1::BatchPlan none;
  EXPECT_FALSE(scheduler.NextPlan(&none));
  scheduler.Commit({v1::StepResult()});
  scheduler.Commit({v1::StepResult()});
  ExpectAllFree(scheduler, options);
  EXPECT_FALSE(scheduler.HasWork());
}

TEST(CompletionsTest, OneErrorEndsThemAllOnce) {
  const Scheduler::Options options = SmallOptions();
  for (const bool expires : {false, true}) {
    Scheduler scheduler(options);
    GenerationRequest request = Completions(1, 70, 10, 3);
    // Later than the first plan, which is made at once.
    if (expires) {
      request.deadline =
          std::chrono::steady_clock::now() + std::chrono::milliseconds(200);
    }
    ASSERT_TRUE(scheduler.Submit(request).ok());
    v1::BatchPlan plan;
    ASSERT_TRUE(scheduler.NextPlan(&plan));
    v1::StepResult result;
    for (const int token : {3, expires ? 3 : -1, 3}) {
      result.add_samples()->set_token(token);
    }
    scheduler.Commit({result});
    while (expires && std::chrono::steady_clock::now() < *request.deadline) {
    }
    EXPECT_FALSE(scheduler.NextPlan(&plan));
    const std::vector<TokenEvent> events = scheduler.TakeEvents();
    int errors = 0;
    for (const TokenEvent& event : events) errors += event.error.ok() ? 0 : 1;
    EXPECT_EQ(errors, 1);
    EXPECT_FALSE(events.back().error.ok()) << "an event after the error";
    ExpectAllFree(scheduler, options);
  }
}

TEST(CompletionsTest, AreAdmittedTogether) {
  const Scheduler::Options options = SmallOptions();
  Scheduler scheduler(options);
  FakeGroup group(options);
  ASSERT_TRUE(scheduler.Submit(Completions(1, 10, 5, 2)).ok());
  ASSERT_TRUE(scheduler.Submit(Completions(2, 10, 5, 3)).ok());
  ASSERT_TRUE(scheduler.Submit(Request(3, 10, 5)).ok());
  v1::BatchPlan plan;
  ASSERT_TRUE(scheduler.NextPlan(&plan));
  EXPECT_EQ(scheduler.Load().running, 2);
  EXPECT_EQ(scheduler.Load().queued, 2);  // nobody overtakes
  scheduler.Cancel(1);
  scheduler.Commit({group.Run(plan.groups(0))});
  ASSERT_TRUE(scheduler.NextPlan(&plan));
  EXPECT_EQ(scheduler.Load().running, 4);
  EXPECT_EQ(scheduler.Load().queued, 0);
}

TEST(CompletionsTest, LimitsAreThoseOfAllTogether) {
  Scheduler::Options options = SmallOptions();
  options.cache.num_pages = 8;
  Scheduler scheduler(options);
  EXPECT_THAT(std::string(scheduler.Submit(Completions(1, 4, 4, 5)).message()),
              HasSubstr("5 completions of one prompt: not in [1, 16], or more "
                        "than the 4 sequences"));
  EXPECT_FALSE(scheduler.Submit(Completions(1, 4, 4, 0)).ok());
  GenerationRequest continued = Completions(1, 4, 4, 2);
  continued.generated = {1, 2};
  EXPECT_THAT(std::string(scheduler.Submit(continued).message()),
              HasSubstr("2 completions cannot go on after the same 2 tokens"));
  EXPECT_THAT(
      std::string(scheduler.Submit(Completions(1, 64 * 7, 4, 2)).message()),
      HasSubstr("a prompt of 448 tokens leaves no room to generate 2 "
                "completions"));
  // Each gets the same share of what the prompt leaves: 3 pages.
  std::vector<FakeGroup> groups(1, FakeGroup(options));
  ASSERT_TRUE(scheduler.Submit(Completions(1, 130, 1000, 2)).ok());
  int64_t tokens = 0;
  for (const TokenEvent& event : RunAll(&scheduler, &groups)) {
    tokens += static_cast<int64_t>(event.tokens.size());
    if (event.finish != FinishReason::kNone) {
      EXPECT_EQ(event.finish, FinishReason::kContextFull);
    }
  }
  EXPECT_EQ(tokens, 2 * (5 * 64 - 130));
  ExpectAllFree(scheduler, options);
}

TEST(PromptLogprobsTest, AreThoseOfFewRowsAStep) {
  Scheduler::Options options = SmallOptions();
  options.max_batch_tokens = 512;
  Scheduler scheduler(options);
  FakeGroup group(options);
  GenerationRequest scored = Request(1, 150, 2);
  scored.prompt_logprobs = 4;
  ASSERT_TRUE(scheduler.Submit(scored).ok());
  scored.id = 2;
  ASSERT_TRUE(scheduler.Submit(scored).ok());
  ASSERT_TRUE(scheduler.Submit(Request(3, 150, 2)).ok());
  std::map<uint64_t, int> scores;
  std::map<uint64_t, int> tokens;
  std::vector<int> most;
  v1::BatchPlan plan;
  while (scheduler.HasWork() && scheduler.NextPlan(&plan)) {
    int given = 0;
    for (const v1::Sample& sample : plan.groups(0).samples()) {
      if (!sample.has_given()) continue;
      ++given;
      EXPECT_EQ(sample.num_top(), 4);
      EXPECT_EQ(sample.given(), sample.position() % 100);
    }
    most.push_back(given);
    scheduler.Commit({group.Run(plan.groups(0))});
    for (const TokenEvent& event : scheduler.TakeEvents()) {
      if (!event.prompt_logprobs.empty()) {
        EXPECT_EQ(tokens[event.id], 0) << "the prompt comes first";
        EXPECT_TRUE(event.tokens.empty());
      }
      scores[event.id] += static_cast<int>(event.prompt_logprobs.size());
      tokens[event.id] += static_cast<int>(event.tokens.size());
    }
  }
  // The oldest first; the last row of a prompt is drawn from, not scored.
  EXPECT_THAT(most, ElementsAre(64, 64, 21, 64, 64, 21, 0));
  EXPECT_THAT(scores, ElementsAre(testing::Pair(1, 149), testing::Pair(2, 149),
                                  testing::Pair(3, 0)));
  EXPECT_THAT(tokens, ElementsAre(testing::Pair(1, 2), testing::Pair(2, 2),
                                  testing::Pair(3, 2)));
  ExpectAllFree(scheduler, options);
}

TEST(PromptLogprobsTest, RowsThatAreNotNumbersEndTheRequest) {
  const Scheduler::Options options = SmallOptions();
  Scheduler scheduler(options);
  GenerationRequest request = Request(1, 3, 5);
  request.prompt_logprobs = 0;
  ASSERT_TRUE(scheduler.Submit(request).ok());
  v1::BatchPlan plan;
  ASSERT_TRUE(scheduler.NextPlan(&plan));
  v1::StepResult result;
  for (const int token : {1, -1, 5}) result.add_samples()->set_token(token);
  scheduler.Commit({result});
  const std::vector<TokenEvent> events = scheduler.TakeEvents();
  ASSERT_EQ(events.size(), 2u);
  EXPECT_THAT(std::string(events[1].error.message()),
              HasSubstr("position 2 are not numbers"));
  ExpectAllFree(scheduler, options);
}

TEST(SchedulerTest, DrainRefusesNewAndEndsWhenEmpty) {
  const Scheduler::Options options = SmallOptions();
  Scheduler scheduler(options);
  std::vector<FakeGroup> groups(1, FakeGroup(options));
  ASSERT_TRUE(scheduler.Submit(Request(1, 4, 2)).ok());
  scheduler.Drain();
  EXPECT_EQ(scheduler.Submit(Request(2, 4, 2)).code(),
            absl::StatusCode::kUnavailable);
  EXPECT_TRUE(scheduler.WaitForWork());
  EXPECT_EQ(RunAll(&scheduler, &groups).size(), 2u);
  EXPECT_FALSE(scheduler.WaitForWork());
}

TEST(SchedulerTest, ChoosesTheExchangeByRows) {
  Scheduler::Options options = SmallOptions();
  options.tensor_parallel = 2;
  options.replicated_rows = 16;
  Scheduler scheduler(options);
  FakeGroup group(options);
  ASSERT_TRUE(scheduler.Submit(Request(1, 20, 5)).ok());
  v1::BatchPlan plan;
  ASSERT_TRUE(scheduler.NextPlan(&plan));
  EXPECT_EQ(plan.exchange(), v1::BatchPlan::ALL_TO_ALL);
  scheduler.Commit({group.Run(plan.groups(0))});
  ASSERT_TRUE(scheduler.NextPlan(&plan));
  EXPECT_EQ(plan.exchange(), v1::BatchPlan::REPLICATED);
  EXPECT_EQ(plan.padded_rows(), 1);
}

// A device that records steps meets few sizes; a step with a prompt, or with
// more pages than rows, is none of them.
TEST(SchedulerTest, PadsDecodeStepsToBuckets) {
  Scheduler::Options options = SmallOptions();
  options.pad_decode_rows = true;
  Scheduler scheduler(options);
  FakeGroup group(options);
  for (uint64_t id = 1; id <= 3; ++id) {
    ASSERT_TRUE(scheduler.Submit(Request(id, 5, 4)).ok());
  }
  v1::BatchPlan plan;
  ASSERT_TRUE(scheduler.NextPlan(&plan));
  EXPECT_FALSE(plan.decode_only());
  EXPECT_EQ(plan.padded_rows(), 15);
  scheduler.Commit({group.Run(plan.groups(0))});
  ASSERT_TRUE(scheduler.NextPlan(&plan));
  EXPECT_TRUE(plan.decode_only());
  EXPECT_EQ(plan.padded_rows(), 4);
  scheduler.Commit({group.Run(plan.groups(0))});
  ASSERT_TRUE(scheduler.Submit(Request(4, 5, 4)).ok());
  ASSERT_TRUE(scheduler.NextPlan(&plan));
  EXPECT_FALSE(plan.decode_only());
}

TEST(DecodeBucketTest, HoldsTheRows) {
  for (int64_t rows = 1; rows <= 300; ++rows) {
    EXPECT_GE(DecodeBucket(rows), rows);
    EXPECT_EQ(DecodeBucket(DecodeBucket(rows)), DecodeBucket(rows));
  }
  EXPECT_EQ(DecodeBucket(3), 4);
  EXPECT_EQ(DecodeBucket(9), 16);
  EXPECT_EQ(DecodeBucket(17), 24);
}

// 1,000 requests of random lengths, some for several completions, arrive, some
// are cancelled, over two groups: every one that was not cancelled gets all its
// tokens in order, and no page or slot is lost.
TEST(SchedulerTest, ServesRandomArrivalsWithoutLosingAnything) {
  Scheduler::Options options = SmallOptions();
  options.data_parallel = 2;
  options.max_queued = 32;
  Scheduler scheduler(options);
  std::vector<FakeGroup> groups(2, FakeGroup(options));
  std::mt19937 random(7);
  using Key = std::pair<uint64_t, int>;  // request and completion
  std::map<Key, int64_t> wanted;
  std::map<Key, int64_t> received;
  std::set<Key> finished, cancelled;
  uint64_t next_id = 0;
  v1::BatchPlan plan;
  while (next_id < 1000 || scheduler.HasWork()) {
    for (int i = static_cast<int>(random() % 3); i > 0 && next_id < 1000; --i) {
      const int new_tokens = 1 + static_cast<int>(random() % 40);
      const int prompt = 1 + static_cast<int>(random() % 300);
      const int count =
          random() % 4 == 0 ? 2 + static_cast<int>(random() % 3) : 1;
      if (!scheduler.Submit(Completions(next_id, prompt, new_tokens, count))
               .ok()) {
        break;
      }
      for (int c = 0; c < count; ++c) wanted[{next_id, c}] = new_tokens;
      ++next_id;
    }
    if (random() % 8 == 0 && next_id > 0) {
      const uint64_t id = random() % next_id;
      // All of it, or one completion; what a request does not have is ignored.
      const int completion = static_cast<int>(random() % 4);
      if (random() % 2 == 0) {
        scheduler.Cancel(id);
        for (int c = 0; c < 4; ++c) cancelled.insert({id, c});
      } else {
        scheduler.CancelCompletion(id, completion);
        cancelled.insert({id, completion});
      }
    }
    if (scheduler.NextPlan(&plan)) {
      std::vector<v1::StepResult> results;
      for (int g = 0; g < 2; ++g) {
        results.push_back(groups[g].Run(plan.groups(g)));
      }
      scheduler.Commit(results);
    }
    for (const TokenEvent& event : scheduler.TakeEvents()) {
      const Key key = {event.id, event.completion};
      ASSERT_EQ(event.start_index, received[key]);
      ASSERT_EQ(finished.count(key), 0u);
      received[key] += static_cast<int64_t>(event.tokens.size());
      if (event.finish != FinishReason::kNone) finished.insert(key);
    }
  }
  for (const auto& [key, count] : wanted) {
    if (cancelled.count(key) == 0) {
      EXPECT_EQ(received[key], count) << key.first << " " << key.second;
      EXPECT_EQ(finished.count(key), 1u) << key.first << " " << key.second;
    }
  }
  ExpectAllFree(scheduler, options);
}

}  // namespace
}  // namespace ring
