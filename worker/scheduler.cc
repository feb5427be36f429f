#include "worker/scheduler.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"
#include "kernels/paged_attention/paged_attention.h"
#include "ring/v1/plan.pb.h"
#include "worker/adjustment_plan.h"
#include "worker/decode_bucket.h"
#include "worker/plan_rows.h"

namespace ring {
namespace {

int64_t Microseconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration_cast<std::chrono::microseconds>(duration)
      .count();
}

// The longest sequence if `count` of them, with the first `known` tokens in
// common, are to fit so many pages.
int64_t LongestOf(int64_t count, int64_t known, int64_t pages) {
  const int64_t shared = known / kPageTokens;
  return (shared + (pages - shared) / count) * kPageTokens;
}

// The last page of `sequence`.
void AddPageEntry(const SequenceState& sequence, v1::GroupPlan* plan) {
  v1::PageEntry* const entry = plan->add_page_entries();
  entry->set_sequence(sequence.slot);
  entry->set_index(static_cast<int32_t>(sequence.pages.size()) - 1);
  entry->set_page(sequence.pages.back());
}

void SetCopy(int from, int to, v1::CacheCopy* copy) {
  copy->set_from(from);
  copy->set_to(to);
}

bool Contains(absl::Span<const int32_t> ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

// As BatchPlan.decode_only wants it.
bool OnlyDecodes(const v1::GroupPlan& group) {
  const auto is_decode_row = [](const v1::Segment& segment) {
    return !segment.prompt() && segment.tokens_size() == 1;
  };
  return absl::c_all_of(group.segments(), is_decode_row) &&
         group.samples_size() == group.segments_size() &&
         group.page_entries_size() <= group.segments_size();
}

std::vector<IdLogprob> TopOf(const v1::SampleResult& sample) {
  std::vector<IdLogprob> top;
  for (int i = 0; i < sample.top_ids_size(); ++i) {
    top.push_back({sample.top_ids(i), sample.top_logprobs(i)});
  }
  return top;
}

// What came from another group has been reported there.
bool IsScored(const GenerationRequest& request) {
  return request.prompt_logprobs.has_value() && request.generated.empty();
}

}  // namespace

Scheduler::Scheduler(const Options& options) : options_(options) {
  RING_CHECK_GE(options.max_batch_tokens,
                options.cache.num_slots + options.prompt_cut)
      << "a step must hold a row of every sequence and a piece of a prompt";
  RING_CHECK_LE(options.prompt_cut, kMaxScoredRows);
  for (int i = 0; i < options.data_parallel; ++i) {
    groups_.emplace_back(options.cache);
  }
}

Scheduler::~Scheduler() = default;

int64_t Scheduler::PagesFor(int64_t tokens) {
  return (tokens + kPageTokens - 1) / kPageTokens;
}

// Sets how far the sequence may go.
absl::Status Scheduler::FitLimits(SequenceState* sequence) const {
  const GenerationRequest& request = sequence->request;
  const int64_t known = sequence->num_known();
  const int64_t wanted =
      request.max_new_tokens - static_cast<int64_t>(request.generated.size());
  if (request.prompt.empty()) {
    return absl::InvalidArgumentError("the prompt has no tokens");
  }
  if (wanted < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_new_tokens = ", request.max_new_tokens,
                     " leaves nothing to generate after ",
                     request.generated.size(), " tokens"));
  }
  const int completions = request.num_completions;
  if (completions < 1 ||
      completions > std::min(kMaxCompletions, options_.cache.num_slots)) {
    return absl::InvalidArgumentError(absl::StrCat(
        completions, " completions of one prompt: not in [1, ", kMaxCompletions,
        "], or more than the ", options_.cache.num_slots,
        " sequences that a group runs at once (--max-sequences)"));
  }
  if (completions > 1 && !request.generated.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(completions, " completions cannot go on after the same ",
                     request.generated.size(), " tokens"));
  }
  const int64_t longest =
      LongestOf(completions, known, options_.cache.num_pages);
  const int64_t room = std::min(options_.max_context, longest) - known;
  if (room < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a prompt of ", known, " tokens leaves no room to generate ",
        completions, completions == 1 ? " completion" : " completions",
        ": the context holds ", options_.max_context,
        " tokens, the cache of a group ",
        int64_t{options_.cache.num_pages} * kPageTokens));
  }
  RING_RETURN_IF_ERROR(CheckAdjustments(request));
  sequence->max_samples = std::min(wanted, room);
  sequence->limit_reason =
      wanted <= room ? FinishReason::kLength : FinishReason::kContextFull;
  return absl::OkStatus();
}

absl::Status Scheduler::Submit(GenerationRequest request) {
  auto sequence = std::make_unique<SequenceState>();
  sequence->known = request.prompt;
  sequence->known.insert(sequence->known.end(), request.generated.begin(),
                         request.generated.end());
  sequence->request = std::move(request);
  sequence->submitted = Clock::now();
  RING_RETURN_IF_ERROR(FitLimits(sequence.get()));

  MutexLock lock(&mutex_);
  if (draining_ || stopped_) {
    return absl::UnavailableError("the worker group takes no new requests");
  }
  if (num_queued_ >= options_.max_queued) {
    return absl::ResourceExhaustedError(absl::StrCat(
        num_queued_, " requests wait, the limit is ", options_.max_queued));
  }
  ++num_queued_;
  inbox_.requests.push_back(std::move(sequence));
  arrived_.NotifyOne();
  return absl::OkStatus();
}

void Scheduler::Cancel(uint64_t id) {
  MutexLock lock(&mutex_);
  inbox_.cancels.push_back({id, std::nullopt});
  arrived_.NotifyOne();
}

void Scheduler::CancelCompletion(uint64_t id, int completion) {
  MutexLock lock(&mutex_);
  inbox_.cancels.push_back({id, completion});
  arrived_.NotifyOne();
}

void Scheduler::CancelAll() {
  MutexLock lock(&mutex_);
  // Requests that arrived before this call fall under it as well.
  num_queued_ -= static_cast<int>(inbox_.requests.size());
  inbox_.requests.clear();
  inbox_.cancels.clear();
  inbox_.cancel_all = true;
  arrived_.NotifyOne();
}

void Scheduler::Drain() {
  MutexLock lock(&mutex_);
  draining_ = true;
  arrived_.NotifyOne();
}

void Scheduler::Stop() {
  MutexLock lock(&mutex_);
  stopped_ = true;
  arrived_.NotifyOne();
}

bool Scheduler::WaitForWork() {
  MutexLock lock(&mutex_);
  for (;;) {
    if (stopped_) return false;
    const bool news = !inbox_.requests.empty() || !inbox_.cancels.empty() ||
                      inbox_.cancel_all;
    if (news || !sequences_.empty()) return true;
    if (draining_) return false;
    arrived_.Wait(&mutex_);
  }
}

bool Scheduler::HasWork() {
  if (!sequences_.empty()) return true;
  MutexLock lock(&mutex_);
  return !stopped_ && !inbox_.requests.empty();
}

void Scheduler::TakeArrivals() {
  Inbox inbox;
  {
    MutexLock lock(&mutex_);
    std::swap(inbox, inbox_);
  }
  if (inbox.cancel_all) {
    std::vector<SequenceState*> all;
    for (auto& [key, sequence] : sequences_) all.push_back(sequence.get());
    for (SequenceState* sequence : all) {
      sequence->ended = true;
      ReleaseIfDone(sequence);
    }
    events_.clear();
  }
  for (SequencePtr& sequence : inbox.requests) {
    SequenceState* const added = sequence.get();
    const auto [it, inserted] = sequences_.emplace(
        std::pair(added->request.id, 0), std::move(sequence));
    RING_CHECK(inserted) << "request " << added->request.id << " exists";
    waiting_.push_back(added);
  }
  for (const CancelOrder& cancel : inbox.cancels) {
    for (SequenceState* sequence : CompletionsOf(cancel.id)) {
      if (cancel.completion.has_value()) {
        if (sequence->completion != *cancel.completion) continue;
        // Before that the others depend on completion 0.
        if (sequence->num_sampled == 0) continue;
      }
      sequence->ended = true;
      ReleaseIfDone(sequence);
    }
  }
}

std::vector<SequenceState*> Scheduler::CompletionsOf(uint64_t id) const {
  std::vector<SequenceState*> completions;
  for (auto it = sequences_.lower_bound({id, 0});
       it != sequences_.end() && it->first.first == id; ++it) {
    completions.push_back(it->second.get());
  }
  return completions;
}

void Scheduler::DropExpired() {
  const Clock::time_point now = Clock::now();
  std::vector<SequenceState*> expired;
  for (auto& [key, sequence] : sequences_) {
    const auto& deadline = sequence->request.deadline;
    if (!sequence->ended && deadline.has_value() && *deadline <= now) {
      expired.push_back(sequence.get());
    }
  }
  for (SequenceState* sequence : expired) {
    Fail(sequence,
         absl::DeadlineExceededError("the request's deadline has passed"));
  }
  for (SequenceState* sequence : expired) ReleaseIfDone(sequence);
}

bool Scheduler::NextPlan(v1::BatchPlan* plan) {
  TakeArrivals();
  DropExpired();
  plan->Clear();
  plan->set_kind(v1::BatchPlan::STEP);
  SentPlan sent;
  sent.groups.resize(groups_.size());
  std::vector<int64_t> budgets(groups_.size(), options_.max_batch_tokens);
  for (size_t g = 0; g < groups_.size(); ++g) {
    PlanDecodes(&groups_[g], plan->add_groups(), &sent.groups[g], &budgets[g]);
  }
  Admit(budgets);
  bool any = false;
  for (size_t g = 0; g < groups_.size(); ++g) {
    v1::GroupPlan* const group_plan = plan->mutable_groups(static_cast<int>(g));
    PlanPrompts(&groups_[g], group_plan, &sent.groups[g], &budgets[g]);
    any = any || group_plan->segments_size() > 0;
  }
  if (!any) return false;
  plan->set_step(next_step_++);
  plan->set_num_token_ids(NumTokenIds(sent));
  FillExchange(plan);
  in_flight_.push_back(std::move(sent));
  return true;
}

// The same for all requests, as one coordinator sends them.
int32_t Scheduler::NumTokenIds(const SentPlan& plan) {
  int32_t ids = std::numeric_limits<int32_t>::max();
  for (const SentPlan::Group& group : plan.groups) {
    for (const SentPlan::Sample& sample : group.samples) {
      ids = std::min(ids, sample.sequence->request.num_token_ids);
    }
  }
  return ids;
}

void Scheduler::PlanDecodes(Group* group, v1::GroupPlan* plan,
                            SentPlan::Group* sent, int64_t* budget) {
  for (SequenceState* sequence : group->running) {
    if (sequence->ended || !sequence->prefilled()) continue;
    if (sequence->num_sampled >= sequence->max_samples) continue;
    AddSegment(group, sequence, 1, plan, sent);
    AddSample(sequence, options_.max_batch_tokens - *budget, plan, sent);
    --*budget;
  }
}

void Scheduler::PlanPrompts(Group* group, v1::GroupPlan* plan,
                            SentPlan::Group* sent, int64_t* budget) {
  int64_t scored_budget = kMaxScoredRows;
  for (SequenceState* sequence : group->running) {
    if (*budget == 0) return;
    if (sequence->ended || sequence->prefilled()) continue;
    if (sequence->completion > 0) continue;  // begins with another's prompt
    const int64_t left = sequence->num_known() - sequence->planned_rows;
    const bool scored = IsScored(sequence->request);
    int64_t rows = std::min(left, *budget);
    if (scored) rows = std::min(rows, scored_budget);
    if (rows < left) {
      const int64_t end = (sequence->planned_rows + rows) /
                          options_.prompt_cut * options_.prompt_cut;
      rows = end - sequence->planned_rows;
      if (rows <= 0) continue;
    }
    const int64_t first_row = options_.max_batch_tokens - *budget;
    AddSegment(group, sequence, rows, plan, sent);
    *budget -= rows;
    if (scored) {
      AddScores(sequence, sequence->planned_rows - rows, first_row, plan, sent);
      scored_budget -= rows;
    }
    if (sequence->prefilled()) {
      AddSample(sequence, first_row + rows - 1, plan, sent);
      StartFollowers(group, sequence, first_row + rows - 1, plan, sent);
    }
  }
}

// Gives waiting requests slots and pages while some group has room for the
// oldest one; nobody overtakes, so nobody starves.
void Scheduler::Admit(absl::Span<const int64_t> budgets) {
  int admitted = 0;
  while (!waiting_.empty()) {
    SequenceState* const first = waiting_.front();
    const int completions = first->request.num_completions;
    const int64_t pages = PagesFor(first->num_known() + first->max_samples);
    // Without those that the prompt fills.
    const int64_t own_pages = pages - first->num_known() / kPageTokens;
    const int group =
        PickGroup(completions, pages + (completions - 1) * own_pages, budgets);
    if (group < 0) break;
    waiting_.pop_front();
    ++admitted;
    for (int i = 1; i < completions; ++i) {
      auto follower = std::make_unique<SequenceState>();
      follower->request = first->request;
      follower->request.sampling.seed =
          SeedOfCompletion(first->request.sampling.seed, i);
      follower->completion = i;
      follower->known = first->known;
      follower->max_samples = first->max_samples;
      follower->limit_reason = first->limit_reason;
      follower->submitted = first->submitted;
      first->followers.push_back(follower.get());
      sequences_.emplace(std::pair(first->request.id, i), std::move(follower));
    }
    Place(first, group, pages);
    for (SequenceState* follower : first->followers) {
      Place(follower, group, own_pages);
    }
  }
  MutexLock lock(&mutex_);
  num_queued_ -= admitted;
}

// Of the groups with room and rows left the one with most free pages; -1: none.
int Scheduler::PickGroup(int sequences, int64_t pages,
                         absl::Span<const int64_t> budgets) const {
  int best = -1;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const CacheAllocator& cache = groups_[g].cache;
    if (cache.free_slots() < sequences) continue;
    if (cache.unreserved_pages() < pages || budgets[g] == 0) continue;
    if (best < 0 ||
        cache.unreserved_pages() > groups_[best].cache.unreserved_pages()) {
      best = static_cast<int>(g);
    }
  }
  return best;
}

void Scheduler::Place(SequenceState* sequence, int group, int64_t pages) {
  sequence->group = group;
  sequence->slot = groups_[group].cache.TakeSlot();
  groups_[group].cache.ReservePages(static_cast<int>(pages));
  sequence->reserved_pages = static_cast<int>(pages);
  sequence->first_planned = Clock::now();
  groups_[group].running.push_back(sequence);
}

void Scheduler::AddSegment(Group* group, SequenceState* sequence, int64_t rows,
                           v1::GroupPlan* plan, SentPlan::Group* sent) {
  const int64_t begin = sequence->planned_rows;
  if (begin == 0) StartAdjustments(*sequence, plan);
  while (static_cast<int64_t>(sequence->pages.size()) * kPageTokens <
         begin + rows) {
    sequence->pages.push_back(group->cache.TakePage());
    --sequence->reserved_pages;
    AddPageEntry(*sequence, plan);
    const auto end = static_cast<int64_t>(sequence->pages.size()) * kPageTokens;
    if (end > sequence->num_known()) continue;
    for (SequenceState* follower : sequence->followers) {
      group->cache.SharePage(sequence->pages.back());
      follower->pages.push_back(sequence->pages.back());
      AddPageEntry(*follower, plan);
    }
  }
  v1::Segment* const segment = plan->add_segments();
  segment->set_sequence(sequence->slot);
  segment->set_position(static_cast<int32_t>(begin));
  segment->set_prompt(!sequence->prefilled());
  segment->set_state_in(begin == 0 ? -1 : sequence->slot);
  segment->set_state_out(sequence->slot);
  for (int64_t i = begin; i < begin + rows; ++i) {
    segment->add_tokens(i < sequence->num_known() ? sequence->known[i] : -1);
  }
  if (begin < sequence->num_known()) CountSegment(*sequence, segment);
  sequence->planned_rows += rows;
  ++sequence->plans_in_flight;
  sent->rows.push_back(sequence);
}

void Scheduler::AddSample(SequenceState* sequence, int64_t row,
                          v1::GroupPlan* plan, SentPlan::Group* sent) {
  const Sampling& sampling = sequence->request.sampling;
  v1::Sample* const sample = plan->add_samples();
  sample->set_row(static_cast<int32_t>(row));
  sample->set_sequence(sequence->slot);
  sample->set_temperature(sampling.temperature);
  sample->set_top_k(sampling.top_k);
  sample->set_top_p(sampling.top_p);
  sample->set_min_p(sampling.min_p);
  sample->set_seed(sampling.seed);
  sample->set_position(static_cast<int32_t>(sequence->planned_rows));
  sample->set_num_top(sequence->request.top_logprobs);
  AdjustSample(*sequence, sample);
  ++sequence->num_sampled;
  sent->samples.push_back({sequence});
}

// The rows from position `begin` to the last one planned, of which `row` is the
// first, tell how likely the prompt's next tokens are.
void Scheduler::AddScores(SequenceState* sequence, int64_t begin, int64_t row,
                          v1::GroupPlan* plan, SentPlan::Group* sent) {
  const int64_t end =
      std::min(sequence->planned_rows, sequence->num_known() - 1);
  for (int64_t i = begin; i < end; ++i, ++row) {
    v1::Sample* const sample = plan->add_samples();
    sample->set_row(static_cast<int32_t>(row));
    sample->set_sequence(-1);
    sample->set_given(sequence->known[i + 1]);
    sample->set_position(static_cast<int32_t>(i + 1));
    sample->set_num_top(*sequence->request.prompt_logprobs);
    sent->samples.push_back({sequence, /*given=*/true});
  }
}

// The prompt of `first` ends in `row`: from there each completion goes its way.
void Scheduler::StartFollowers(Group* group, SequenceState* first, int64_t row,
                               v1::GroupPlan* plan, SentPlan::Group* sent) {
  for (SequenceState* follower : std::exchange(first->followers, {})) {
    SetCopy(first->slot, follower->slot, plan->add_state_copies());
    if (first->num_known() % kPageTokens != 0) {
      follower->pages.push_back(group->cache.TakePage());
      --follower->reserved_pages;
      AddPageEntry(*follower, plan);
      SetCopy(first->pages.back(), follower->pages.back(),
              plan->add_page_copies());
    }
    CopyAdjustments(*first, *follower, plan);
    follower->planned_rows = first->planned_rows;
    ++follower->plans_in_flight;
    sent->rows.push_back(follower);
    AddSample(follower, row, plan, sent);
  }
}

void Scheduler::FillExchange(v1::BatchPlan* plan) const {
  int64_t most = 0;
  int64_t total = 0;
  for (const v1::GroupPlan& group : plan->groups()) {
    const int64_t rows = RowsOf(group);
    most = std::max(most, rows);
    total += rows;
  }
  bool replicated = options_.exchange == ExchangePolicy::kReplicated;
  if (options_.exchange == ExchangePolicy::kAuto) {
    // A world of one rank has nothing to exchange.
    replicated = options_.data_parallel * options_.tensor_parallel == 1 ||
                 total <= options_.replicated_rows;
  }
  plan->set_exchange(replicated ? v1::BatchPlan::REPLICATED
                                : v1::BatchPlan::ALL_TO_ALL);
  plan->set_decode_only(replicated &&
                        absl::c_all_of(plan->groups(), OnlyDecodes));
  if (plan->decode_only() && options_.pad_decode_rows) {
    most = DecodeBucket(most);
  }
  plan->set_padded_rows(static_cast<int32_t>(most));
}

void Scheduler::Commit(absl::Span<const v1::StepResult> results) {
  RING_CHECK(!in_flight_.empty());
  const SentPlan sent = std::move(in_flight_.front());
  in_flight_.pop_front();
  RING_CHECK_EQ(results.size(), sent.groups.size());
  for (size_t g = 0; g < sent.groups.size(); ++g) {
    const SentPlan::Group& group = sent.groups[g];
    RING_CHECK_EQ(static_cast<size_t>(results[g].samples_size()),
                  group.samples.size())
        << "samples of group " << g;
    for (SequenceState* sequence : group.rows) --sequence->plans_in_flight;
    for (size_t i = 0; i < group.samples.size(); ++i) {
      const v1::SampleResult& sample = results[g].samples(static_cast<int>(i));
      const auto [sequence, given] = group.samples[i];
      if (sequence->ended) continue;  // a discarded step
      given ? CommitScore(sequence, sample) : CommitToken(sequence, sample);
    }
    for (SequenceState* sequence : group.rows) ReleaseIfDone(sequence);
  }
}

void Scheduler::CommitScore(SequenceState* sequence,
                            const v1::SampleResult& sample) {
  if (sample.token() < 0) {
    FailNotNumbers(sequence, 1 + sequence->num_scored);
    return;
  }
  // One event for the scores of a step.
  if (events_.empty() || events_.back().id != sequence->request.id ||
      events_.back().prompt_logprobs.empty()) {
    EventFor(sequence);
  }
  events_.back().prompt_logprobs.push_back({sample.logprob(), TopOf(sample)});
  ++sequence->num_scored;
}

void Scheduler::FailNotNumbers(SequenceState* sequence, int64_t position) {
  Fail(sequence,
       absl::InternalError(absl::StrCat("the model's logits at position ",
                                        position, " are not numbers")));
}

void Scheduler::CommitToken(SequenceState* sequence,
                            const v1::SampleResult& sample) {
  const int32_t token = sample.token();
  if (token < 0) {
    FailNotNumbers(sequence, sequence->num_known() + sequence->num_committed);
    return;
  }
  const GenerationRequest& request = sequence->request;
  TokenEvent& event = EventFor(sequence);
  if (sequence->num_committed == 0) {
    event.queue_us =
        Microseconds(sequence->first_planned - sequence->submitted);
    event.prefill_us = Microseconds(Clock::now() - sequence->first_planned);
  }
  event.tokens.push_back(token);
  if (request.logprobs) event.logprobs.push_back(sample.logprob());
  if (request.top_logprobs > 0) event.top_logprobs.push_back(TopOf(sample));
  ++sequence->num_committed;
  if (Contains(request.eos_token_ids, token)) {
    Finish(sequence, FinishReason::kEos);
  } else if (Contains(request.stop_token_ids, token)) {
    Finish(sequence, FinishReason::kStopToken);
  } else if (sequence->num_committed >= sequence->max_samples) {
    Finish(sequence, sequence->limit_reason);
  }
}

// A new event each time: events are taken after every step.
TokenEvent& Scheduler::EventFor(SequenceState* sequence) {
  TokenEvent event;
  event.id = sequence->request.id;
  event.completion = sequence->completion;
  event.start_index = static_cast<int64_t>(sequence->request.generated.size()) +
                      sequence->num_committed;
  events_.push_back(std::move(event));
  return events_.back();
}

// Right after its last token, which is in the last event.
void Scheduler::Finish(SequenceState* sequence, FinishReason reason) {
  RING_CHECK(!events_.empty() && events_.back().id == sequence->request.id &&
             events_.back().completion == sequence->completion);
  sequence->ended = true;
  events_.back().finish = reason;
}

// Ends the whole request. What it holds is for the caller to release: the other
// completions have rows in the same plans, or the same deadline.
void Scheduler::Fail(SequenceState* sequence, absl::Status error) {
  if (sequence->ended) return;
  EventFor(sequence).error = std::move(error);
  for (SequenceState* each : CompletionsOf(sequence->request.id)) {
    each->ended = true;
  }
}

void Scheduler::ReleaseIfDone(SequenceState* sequence) {
  if (!sequence->ended || sequence->plans_in_flight > 0) return;
  if (sequence->group < 0) {
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), sequence));
    MutexLock lock(&mutex_);
    --num_queued_;
  } else {
    Group& group = groups_[sequence->group];
    for (const int32_t page : sequence->pages) group.cache.ReturnPage(page);
    group.cache.ReleaseReservation(sequence->reserved_pages);
    group.cache.ReturnSlot(sequence->slot);
    group.running.erase(
        std::find(group.running.begin(), group.running.end(), sequence));
  }
  sequences_.erase(std::pair(sequence->request.id, sequence->completion));
}

std::vector<TokenEvent> Scheduler::TakeEvents() {
  return std::exchange(events_, {});
}

LoadReport Scheduler::Load() const {
  LoadReport load;
  for (const Group& group : groups_) {
    load.free_pages += group.cache.unreserved_pages();
    load.free_slots += group.cache.free_slots();
    load.running += static_cast<int>(group.running.size());
  }
  load.free_tokens = load.free_pages * kPageTokens;
  MutexLock lock(&mutex_);
  load.queued = num_queued_;
  return load;
}

}  // namespace ring
