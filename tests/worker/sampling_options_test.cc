// Options that change what is drawn, in whole worker groups: every token
// against probabilities that are computed in fp64 from the step's raw logits.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/mutex.h"
#include "kernels/forwarding_backend.h"
#include "ring/v1/plan.pb.h"
#include "tests/support/golden_file.h"
#include "tests/support/mini_group.h"

namespace ring {
namespace {

constexpr int kTokenIds = 813;
// Where the ranks run: RING_TEST_DEVICE, else the CPU.
std::string TestDevice() {
  const char* const device = std::getenv("RING_TEST_DEVICE");
  return device != nullptr ? device : "cpu";
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Raw logits of every sampled position, put together from the ranks' slices.
// Requests are told apart by their seeds.
class LogitsLog {
 public:
  // Of one rank; it writes until its group is gone.
  void Watch(const Mesh& mesh, Engine* engine) {
    const Range slice = mesh.vocab();
    const int group = mesh.dp_rank();
    engine->set_step_observer([=, this](const v1::BatchPlan& plan,
                                        const float* logits) {
      const auto& samples = plan.groups(group).samples();
      std::vector<float> own(samples.size() * slice.size());
      engine->backend().CopyToHost(
          own.data(), logits, static_cast<int64_t>(own.size() * sizeof(float)));
      engine->backend().Synchronize();
      MutexLock lock(&mutex_);
      for (int i = 0; i < samples.size(); ++i) {
        std::vector<float>& all =
            log_[{samples[i].seed(), samples[i].position()}];
        all.resize(std::max<size_t>(all.size(), slice.end));
        std::copy_n(own.begin() + i * slice.size(), slice.size(),
                    all.begin() + slice.begin);
      }
    });
  }

  std::vector<float> Of(uint64_t seed, int64_t position) {
    MutexLock lock(&mutex_);
    std::vector<float> logits = log_[{seed, static_cast<int>(position)}];
    logits.resize(kTokenIds);
    return logits;
  }

 private:
  Mutex mutex_;
  std::map<std::pair<uint64_t, int>, std::vector<float>> log_
      GUARDED_BY(mutex_);
};

// What the options make of the raw logits, by their definitions.
std::vector<double> AdjustedLogits(const std::vector<float>& raw,
                                   const GenerationRequest& request,
                                   const std::vector<int32_t>& completion) {
  const Sampling& sampling = request.sampling;
  std::vector<double> x(raw.begin(), raw.end());
  for (const LogitBias& bias : sampling.logit_bias) {
    x[bias.id] += double{bias.bias};
  }
  std::vector<int> count(x.size());
  for (const int32_t id : completion) ++count[id];
  std::vector<bool> seen(x.size());
  for (const int32_t id : completion) seen[id] = true;
  for (const int32_t id : request.prompt) seen[id] = true;
  for (size_t id = 0; id < x.size(); ++id) {
    if (seen[id]) {
      x[id] = x[id] > 0 ? x[id] / sampling.repetition_penalty
                        : x[id] * sampling.repetition_penalty;
    }
    x[id] -= double{sampling.frequency_penalty} * count[id];
    x[id] -= count[id] > 0 ? double{sampling.presence_penalty} : 0;
  }
  if (static_cast<int>(completion.size()) < request.min_new_tokens) {
    for (const int32_t id : request.eos_token_ids) x[id] = -kInfinity;
    for (const int32_t id : request.stop_token_ids) x[id] = -kInfinity;
  }
  return x;
}

// The probabilities that ids are drawn with; all of it on one if greedy.
std::vector<double> Probabilities(const std::vector<double>& x,
                                  const Sampling& sampling) {
  const auto best = std::max_element(x.begin(), x.end());
  std::vector<double> p(x.size());
  if (sampling.temperature == 0) {
    p[best - x.begin()] = 1;
    return p;
  }
  std::vector<int> order(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    order[i] = static_cast<int>(i);
    p[i] = std::exp((x[i] - *best) / sampling.temperature);
  }
  std::sort(order.begin(), order.end(),
            [&](int a, int b) { return p[a] > p[b]; });
  size_t kept = order.size();
  if (sampling.top_k > 0) kept = std::min<size_t>(kept, sampling.top_k);
  const auto sum = [&] {
    double total = 0;
    for (size_t i = 0; i < kept; ++i) total += p[order[i]];
    return total;
  };
  if (sampling.top_p < 1) {
    const double wanted = sampling.top_p * sum();
    double mass = 0;
    size_t i = 0;
    while (i < kept && mass < wanted) mass += p[order[i++]];
    kept = i;
  }
  while (kept > 1 && p[order[kept - 1]] < sampling.min_p) --kept;
  const double total = sum();
  for (size_t i = 0; i < order.size(); ++i) {
    p[order[i]] = i < kept ? p[order[i]] / total : 0;
  }
  return p;
}

double LogSoftmax(const std::vector<float>& x, int32_t id) {
  const double max = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (const float value : x) sum += std::exp(value - max);
  return x[id] - max - std::log(sum);
}

// The first `count` ids by raw logit, of equal ones the lower first.
void ExpectLikeliest(const std::vector<IdLogprob>& top, int count,
                     const std::vector<float>& raw) {
  std::vector<int> order(raw.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return raw[a] > raw[b]; });
  ASSERT_EQ(top.size(), static_cast<size_t>(count));
  for (int k = 0; k < count; ++k) {
    EXPECT_EQ(top[k].id, order[k]) << "entry " << k;
    EXPECT_NEAR(top[k].logprob, LogSoftmax(raw, order[k]), 1e-4);
  }
}

// Numbers in [0, 1) that are uniform if a test's claim holds.
class UniformSample {
 public:
  void Add(double u) {
    ++bins_[std::clamp(static_cast<int>(u * kBins), 0, kBins - 1)];
    ++count_;
  }
  int count() const { return count_; }
  double ChiSquare() const {
    const double expected = 1.0 * count_ / kBins;
    double chi_square = 0;
    for (const int bin : bins_) {
      chi_square += (bin - expected) * (bin - expected) / expected;
    }
    return chi_square;
  }
  // The 99.99% point of 19 degrees of freedom. Seeds are fixed.
  static constexpr double kLimit = 53;

 private:
  static constexpr int kBins = 20;
  int bins_[kBins] = {};
  int count_ = 0;
};

struct OptionsCase {
  const char* name;
  Sampling sampling;
  int min_tokens = 0;
};

std::vector<OptionsCase> Cases() {
  const std::vector<LogitBias> bias = {{5, 4},    {70, -100}, {300, 6},
                                       {301, -2}, {812, 3},   {807, 5}};
  return {
      {"temperature", {.temperature = 1}},
      {"top_k", {.temperature = 1.5f, .top_k = 20}},
      {"top_p", {.temperature = 1.2f, .top_p = 0.8f}},
      {"min_p", {.temperature = 1.4f, .min_p = 0.05f}},
      {"repetition", {.temperature = 1, .repetition_penalty = 1.3f}},
      {"presence and frequency",
       {.temperature = 1, .presence_penalty = 0.8f, .frequency_penalty = 0.4f}},
      {"bias", {.temperature = 1.1f, .logit_bias = bias}},
      {"all",
       {.temperature = 1.3f,
        .top_k = 60,
        .top_p = 0.95f,
        .min_p = 0.01f,
        .repetition_penalty = 1.2f,
        .presence_penalty = -0.5f,
        .frequency_penalty = 0.3f,
        .logit_bias = bias},
       30},
      {"greedy, repetition", {.repetition_penalty = 1.2f}},
      {"greedy, all",
       {.repetition_penalty = 0.9f,
        .presence_penalty = 0.3f,
        .frequency_penalty = 0.6f,
        .logit_bias = bias},
       40},
  };
}

constexpr int kRequestsPerCase = 6;
constexpr int kTokens = 48;
// That the requests ask for in turns.
constexpr int kTopLogprobs[] = {20, 0, 3, 0};

// Requests of all cases in turns, so that every batch is mixed.
std::vector<GenerationRequest> Requests() {
  const std::vector<GoldenPrompt> prompts = ReadGoldenPrompts();
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < kRequestsPerCase; ++i) {
    for (const OptionsCase& c : Cases()) {
      GenerationRequest request;
      request.prompt = prompts[i].prompt_ids;
      request.sampling = c.sampling;
      request.sampling.seed = 1000 + requests.size();
      request.max_new_tokens = kTokens;
      request.min_new_tokens = c.min_tokens;
      if (c.min_tokens > 0) request.eos_token_ids = {807, 808};
      request.logprobs = true;
      request.top_logprobs = kTopLogprobs[requests.size() % 4];
      requests.push_back(request);
    }
  }
  return requests;
}

struct MeshCase {
  int dp = 1;
  int tp = 1;
  bool padded_overlapped = false;
};

MiniGroup::Options GroupOptions(const MeshCase& mesh) {
  MiniGroup::Options options;
  options.model_dir = RingTinyDir();
  options.num_token_ids = kTokenIds;
  options.dp = mesh.dp;
  options.tp = mesh.tp;
  options.device = TestDevice();
  if (mesh.padded_overlapped || options.device != "cpu") {
    options.pad_decode_rows = true;
    options.overlap = true;
    options.max_sequences = 7;
    options.replicated_rows = 64;
  }
  return options;
}

std::vector<Completion> RunAll(const MiniGroup::Options& options,
                               const std::vector<GenerationRequest>& requests) {
  auto group = MiniGroup::Start(options);
  EXPECT_TRUE(group.ok()) << group.status();
  std::vector<uint64_t> ids;
  for (const GenerationRequest& request : requests) {
    ids.push_back((*group)->Submit(request));
  }
  std::vector<Completion> completions;
  for (const uint64_t id : ids) {
    completions.push_back((*group)->Wait(id));
    EXPECT_TRUE(completions.back().error.ok()) << completions.back().error;
  }
  return completions;
}

Completion RunOne(const MiniGroup::Options& options,
                  const GenerationRequest& request) {
  return RunAll(options, {request})[0];
}

// Where each draw lies in the distribution that it was drawn from, ids taken in
// two orders: a wrong temperature or filter shows in the one, a wrong penalty
// in the other.
struct CaseStatistics {
  UniformSample likely_first;
  UniformSample occurred_first;
};

void Add(const std::vector<double>& p, const std::vector<int32_t>& completion,
         int32_t id, double within, CaseStatistics* statistics) {
  const auto occurs = [&](int32_t i) {
    return std::find(completion.begin(), completion.end(), i) !=
           completion.end();
  };
  const bool id_occurs = occurs(id);
  double more_likely = 0;
  double before = 0;
  for (int32_t i = 0; i < kTokenIds; ++i) {
    if (p[i] == 0) continue;
    if (p[i] > p[id] || (p[i] == p[id] && i < id)) more_likely += p[i];
    const bool first = occurs(i);
    if (first != id_occurs ? first : i < id) before += p[i];
  }
  statistics->likely_first.Add(more_likely + within * p[id]);
  statistics->occurred_first.Add(before + within * p[id]);
}

struct MeshRun {
  std::vector<Completion> completions;  // of Requests()
  LogitsLog log;
};

std::unique_ptr<MeshRun> RunOn(const MeshCase& mesh_case) {
  auto run = std::make_unique<MeshRun>();
  MiniGroup::Options options = GroupOptions(mesh_case);
  options.on_ready = [&run](int, const Mesh& mesh, Engine* engine) {
    run->log.Watch(mesh, engine);
  };
  run->completions = RunAll(options, Requests());
  return run;
}

// One rank's, whose tokens all meshes must draw.
MeshRun& FirstRun() {
  static MeshRun* const run = RunOn({}).release();
  return *run;
}

std::string NameOf(const MeshCase& mesh) {
  return "Dp" + std::to_string(mesh.dp) + "Tp" + std::to_string(mesh.tp) +
         (mesh.padded_overlapped ? "Overlapped" : "");
}

class SamplingOptionsTest : public testing::TestWithParam<MeshCase> {};

TEST_P(SamplingOptionsTest, DrawsFollowTheExactProbabilities) {
  if (TestDevice() != "cpu" && GetParam().dp * GetParam().tp > 1) {
    GTEST_SKIP() << "threads with a device each cannot talk";
  }
  const std::vector<GenerationRequest> requests = Requests();
  const bool alone = GetParam().dp * GetParam().tp == 1;
  const std::unique_ptr<MeshRun> sharded = alone ? nullptr : RunOn(GetParam());
  MeshRun& run = alone ? FirstRun() : *sharded;
  const std::vector<OptionsCase> cases = Cases();
  std::vector<CaseStatistics> statistics(cases.size());
  std::mt19937_64 random(17);
  for (size_t r = 0; r < requests.size(); ++r) {
    const GenerationRequest& request = requests[r];
    const Completion& completion = run.completions[r];
    EXPECT_EQ(completion.tokens, FirstRun().completions[r].tokens) << r;
    ASSERT_EQ(completion.top_logprobs.size(),
              request.top_logprobs > 0 ? completion.tokens.size() : 0);
    std::vector<int32_t> done;
    for (size_t i = 0; i < completion.tokens.size(); ++i) {
      const int32_t id = completion.tokens[i];
      const std::vector<float> raw =
          run.log.Of(request.sampling.seed,
                     static_cast<int64_t>(request.prompt.size() + i));
      const std::vector<double> p =
          Probabilities(AdjustedLogits(raw, request, done), request.sampling);
      ASSERT_GT(p[id], 0) << cases[r % cases.size()].name << " token " << i;
      EXPECT_NEAR(completion.logprobs[i], LogSoftmax(raw, id), 1e-4);
      if (request.top_logprobs > 0) {
        ExpectLikeliest(completion.top_logprobs[i], request.top_logprobs, raw);
      }
      const double within = static_cast<double>(random() >> 11) * 0x1p-53;
      Add(p, done, id, within, &statistics[r % cases.size()]);
      done.push_back(id);
    }
  }
  // The statistics of the others are those of the same mesh without overlap.
  if (GetParam().padded_overlapped) return;
  for (size_t c = 0; c < cases.size(); ++c) {
    const CaseStatistics& s = statistics[c];
    EXPECT_GE(s.likely_first.count(), 200) << cases[c].name;
    EXPECT_LT(s.likely_first.ChiSquare(), UniformSample::kLimit)
        << cases[c].name;
    EXPECT_LT(s.occurred_first.ChiSquare(), UniformSample::kLimit)
        << cases[c].name;
  }
}

INSTANTIATE_TEST_SUITE_P(Meshes, SamplingOptionsTest,
                         testing::Values(MeshCase{1, 1}, MeshCase{1, 4},
                                         MeshCase{2, 2}, MeshCase{1, 2, true},
                                         MeshCase{2, 1, true}),
                         [](const auto& info) { return NameOf(info.param); });

// Of all cases, with prompts that end within a page, at its end and behind it.
std::vector<GenerationRequest> RequestsForSeveral() {
  std::mt19937 random(23);
  std::vector<GenerationRequest> requests;
  for (const OptionsCase& c : Cases()) {
    GenerationRequest request;
    request.prompt.resize(
        std::vector<int>{5, 64, 150, 65, 128, 1}[requests.size() % 6]);
    for (int32_t& id : request.prompt) {
      id = static_cast<int32_t>(random() % kTokenIds);
    }
    request.sampling = c.sampling;
    request.sampling.seed = 5000 + requests.size();
    request.num_completions = 2 + static_cast<int>(requests.size() % 4);
    request.max_new_tokens = 70;
    request.min_new_tokens = c.min_tokens;
    request.eos_token_ids = {807, 808};
    request.logprobs = true;
    requests.push_back(request);
  }
  return requests;
}

// Completion `index` of `request`, as a request of its own.
GenerationRequest Alone(const GenerationRequest& request, int index) {
  GenerationRequest alone = request;
  alone.num_completions = 1;
  // As proto/ring/v1/inference.proto has it.
  alone.sampling.seed += 0x9E3779B97F4A7C15 * static_cast<uint64_t>(index);
  return alone;
}

// By request and completion, one rank's.
const std::vector<std::vector<Completion>>& EachAlone() {
  static const auto* const all = [] {
    std::vector<GenerationRequest> requests;
    for (const GenerationRequest& request : RequestsForSeveral()) {
      for (int i = 0; i < request.num_completions; ++i) {
        requests.push_back(Alone(request, i));
      }
    }
    const std::vector<Completion> completions =
        RunAll(GroupOptions({}), requests);
    auto* const sorted = new std::vector<std::vector<Completion>>;
    size_t next = 0;
    for (const GenerationRequest& request : RequestsForSeveral()) {
      const auto begin = completions.begin() + static_cast<int64_t>(next);
      next += static_cast<size_t>(request.num_completions);
      sorted->emplace_back(begin, begin + request.num_completions);
    }
    return sorted;
  }();
  return *all;
}

// Whole and in pieces of a prompt.
class CompletionsTest : public SamplingOptionsTest {};

TEST_P(CompletionsTest, EachIsThatOfARequestOfItsOwn) {
  if (TestDevice() != "cpu" && GetParam().dp * GetParam().tp > 1) {
    GTEST_SKIP() << "threads with a device each cannot talk";
  }
  const std::vector<GenerationRequest> requests = RequestsForSeveral();
  for (const int64_t max_batch_tokens : {512, 80}) {
    MiniGroup::Options options = GroupOptions(GetParam());
    options.max_batch_tokens = max_batch_tokens;
    auto group = MiniGroup::Start(options);
    ASSERT_TRUE(group.ok()) << group.status();
    std::vector<uint64_t> ids;
    for (const GenerationRequest& request : requests) {
      ids.push_back((*group)->Submit(request));
    }
    for (size_t r = 0; r < requests.size(); ++r) {
      for (int i = 0; i < requests[r].num_completions; ++i) {
        const Completion completion = (*group)->Wait(ids[r], i);
        const Completion& alone = EachAlone()[r][i];
        EXPECT_TRUE(completion.error.ok()) << completion.error;
        EXPECT_EQ(completion.tokens, alone.tokens) << r << ", " << i;
        EXPECT_EQ(completion.finish, alone.finish) << r << ", " << i;
        ASSERT_EQ(completion.logprobs.size(), alone.logprobs.size());
        for (size_t t = 0; t < alone.logprobs.size(); ++t) {
          EXPECT_NEAR(completion.logprobs[t], alone.logprobs[t], 1e-3);
        }
        // Equal if greedy, else different: the case would prove nothing.
        if (i > 0) {
          EXPECT_EQ(alone.tokens == EachAlone()[r][0].tokens,
                    requests[r].sampling.temperature == 0);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Meshes, CompletionsTest,
                         testing::Values(MeshCase{1, 1}, MeshCase{1, 4},
                                         MeshCase{2, 2}, MeshCase{1, 2, true}),
                         [](const auto& info) { return NameOf(info.param); });

// Whose own logits a test can tell: of seed 0, run one after the other.
GenerationRequest ScoredRequest(int prompt_tokens, int top) {
  std::mt19937 random(prompt_tokens);
  GenerationRequest request;
  for (int i = 0; i < prompt_tokens; ++i) {
    request.prompt.push_back(static_cast<int32_t>(random() % kTokenIds));
  }
  request.max_new_tokens = 12;
  request.logprobs = true;
  request.prompt_logprobs = top;
  return request;
}

class PromptLogprobsTest : public SamplingOptionsTest {};

TEST_P(PromptLogprobsTest, AreThoseOfTheRawLogits) {
  if (TestDevice() != "cpu" && GetParam().dp * GetParam().tp > 1) {
    GTEST_SKIP() << "threads with a device each cannot talk";
  }
  LogitsLog log;
  MiniGroup::Options options = GroupOptions(GetParam());
  options.on_ready = [&log](int, const Mesh& mesh, Engine* engine) {
    log.Watch(mesh, engine);
  };
  auto group = MiniGroup::Start(options);
  ASSERT_TRUE(group.ok()) << group.status();
  std::vector<GenerationRequest> requests;
  std::vector<Completion> alone;
  for (const auto& [tokens, top] :
       {std::pair(1, 3), {2, 0}, {64, 20}, {65, 3}, {200, 5}}) {
    const GenerationRequest request = ScoredRequest(tokens, top);
    const Completion completion = (*group)->Run(request);
    EXPECT_TRUE(completion.error.ok()) << completion.error;
    ASSERT_EQ(completion.prompt_logprobs.size(), request.prompt.size() - 1);
    for (size_t i = 1; i < request.prompt.size(); ++i) {
      const PromptLogprob& token = completion.prompt_logprobs[i - 1];
      const std::vector<float> raw = log.Of(0, static_cast<int64_t>(i));
      EXPECT_NEAR(token.logprob, LogSoftmax(raw, request.prompt[i]), 1e-4) << i;
      ExpectLikeliest(token.top, top, raw);
    }
    EXPECT_EQ(completion.tokens.size(), 12u);
    requests.push_back(request);
    alone.push_back(completion);
  }
  // All at once, and others that are not scored.
  std::vector<uint64_t> ids;
  for (const GenerationRequest& request : requests) {
    ids.push_back((*group)->Submit(request));
    GenerationRequest other = request;
    other.prompt_logprobs.reset();
    other.sampling.temperature = 1;
    other.sampling.top_p = 0.5f;
    other.sampling.presence_penalty = 1;
    (*group)->Submit(other);
  }
  for (size_t r = 0; r < requests.size(); ++r) {
    const Completion completion = (*group)->Wait(ids[r]);
    EXPECT_EQ(completion.tokens, alone[r].tokens);
    ASSERT_EQ(completion.prompt_logprobs.size(),
              alone[r].prompt_logprobs.size());
    for (size_t i = 0; i < completion.prompt_logprobs.size(); ++i) {
      EXPECT_NEAR(completion.prompt_logprobs[i].logprob,
                  alone[r].prompt_logprobs[i].logprob, 1e-3);
    }
  }
}

// Tokens have the log probabilities with which they were generated.
TEST_P(PromptLogprobsTest, OfACompletionAreItsLogprobs) {
  if (TestDevice() != "cpu" && GetParam().dp * GetParam().tp > 1) {
    GTEST_SKIP() << "threads with a device each cannot talk";
  }
  auto group = MiniGroup::Start(GroupOptions(GetParam()));
  ASSERT_TRUE(group.ok()) << group.status();
  GenerationRequest request = ScoredRequest(50, 2);
  request.max_new_tokens = 100;
  request.top_logprobs = 2;
  request.sampling.temperature = 1;
  const Completion first = (*group)->Run(request);
  GenerationRequest whole = request;
  whole.prompt.insert(whole.prompt.end(), first.tokens.begin(),
                      first.tokens.end());
  whole.max_new_tokens = 1;
  whole.num_completions = 3;  // told once
  const uint64_t id = (*group)->Submit(whole);
  const Completion second = (*group)->Wait(id);
  ASSERT_EQ(second.prompt_logprobs.size(), 149u);
  for (size_t i = 0; i < 100; ++i) {
    EXPECT_NEAR(second.prompt_logprobs[49 + i].logprob, first.logprobs[i], 1e-3)
        << i;
    EXPECT_NEAR(second.prompt_logprobs[49 + i].top[0].logprob,
                first.top_logprobs[i][0].logprob, 1e-3);
  }
  EXPECT_TRUE((*group)->Wait(id, 1).prompt_logprobs.empty());
}

INSTANTIATE_TEST_SUITE_P(Meshes, PromptLogprobsTest,
                         testing::Values(MeshCase{1, 1}, MeshCase{1, 4},
                                         MeshCase{2, 2}, MeshCase{1, 2, true}),
                         [](const auto& info) { return NameOf(info.param); });

using Recordings = std::map<int64_t, std::vector<std::string>>;

// Notes the ops of steps that a device may record, by the recording's number.
class RecordingCheck final : public ForwardingBackend {
 public:
  RecordingCheck(std::unique_ptr<Backend> inner, Recordings* recordings)
      : ForwardingBackend(std::move(inner)), recordings_(recordings) {}

  void RunStep(int64_t recording, absl::FunctionRef<void()> fn) override {
    ops_.clear();
    ForwardingBackend::RunStep(0, fn);  // never replayed, so all ops are seen
    if (recording == 0) return;
    const auto [it, is_new] = recordings_->emplace(recording, ops_);
    EXPECT_EQ(it->second, ops_) << "recording " << recording;
  }

 protected:
  void Op(const char* name, absl::FunctionRef<void()> op) override {
    ops_.push_back(name);
    op();
  }

 private:
  std::vector<std::string> ops_;
  Recordings* const recordings_;
};

TEST(RecordingTest, ANumberNamesOneListOfOps) {
  Recordings recordings;
  MiniGroup::Options options = GroupOptions({1, 1, true});
  options.wrap_backend = [&](std::unique_ptr<Backend> backend) {
    return std::make_unique<RecordingCheck>(std::move(backend), &recordings);
  };
  auto group = MiniGroup::Start(options);
  ASSERT_TRUE(group.ok()) << group.status();
  // One after the other: the same sizes of steps, with and without adjustments.
  for (const GenerationRequest& request : Requests()) {
    if (request.sampling.seed >= 1010) break;  // the first of each case
    ASSERT_TRUE((*group)->Run(request).error.ok());
  }
  group->reset();  // a step more may have run
  for (const char* const op : {"AdjustLogits", "TopLogits"}) {
    std::set<int64_t> times;
    for (const auto& [number, ops] : recordings) {
      times.insert(std::count(ops.begin(), ops.end(), op));
    }
    EXPECT_THAT(times, testing::ElementsAre(0, 1)) << op;
  }
}

// Counts are those of the whole text, wherever its tokens came from.
TEST(PenaltyTest, ContinuationEqualsTheUndisturbedCompletion) {
  // Strong, so that what is not counted shows.
  GenerationRequest request = Requests()[0];
  request.sampling = {.seed = 5,
                      .repetition_penalty = 2,
                      .presence_penalty = 2,
                      .frequency_penalty = 2};
  for (const float temperature : {0.0f, 1.5f}) {
    request.sampling.temperature = temperature;
    const std::vector<int32_t> whole = RunOne(GroupOptions({}), request).tokens;
    ASSERT_EQ(whole.size(), size_t{kTokens});
    GenerationRequest rest = request;
    rest.generated.assign(whole.begin(), whole.begin() + 20);
    EXPECT_EQ(RunOne(GroupOptions({}), rest).tokens,
              std::vector<int32_t>(whole.begin() + 20, whole.end()));
  }
}

TEST(PenaltyTest, PromptPiecesAreCountedOnce) {
  GenerationRequest request;
  std::mt19937 random(5);
  for (int i = 0; i < 300; ++i) {
    request.prompt.push_back(static_cast<int32_t>(random() % kTokenIds));
  }
  request.sampling.repetition_penalty = 3;
  request.sampling.presence_penalty = 2;
  request.max_new_tokens = 30;
  MiniGroup::Options options = GroupOptions({});
  const Completion whole = RunOne(options, request);
  options.max_batch_tokens = 72;
  EXPECT_EQ(RunOne(options, request).tokens, whole.tokens);
  // With a slot that others have used.
  options.max_sequences = 1;
  const std::vector<Completion> twice = RunAll(options, {request, request});
  EXPECT_EQ(twice[0].tokens, whole.tokens);
  EXPECT_EQ(twice[1].tokens, whole.tokens);
}

// A prompt whose greedy completion the model ends by itself, and that
// completion.
GoldenPrompt EndingPrompt() {
  for (const GoldenPrompt& golden : ReadGoldenPrompts()) {
    const size_t length = golden.completion_ids.size();
    if (length > 5 && length < 100 && golden.completion_ids.back() >= 807) {
      return golden;
    }
  }
  ADD_FAILURE() << "no golden completion ends";
  return {};
}

TEST(StoppingTest, IgnoredEndsOfSequenceAreTokensLikeOthers) {
  const GoldenPrompt golden = EndingPrompt();
  GenerationRequest request;  // of no eos_token_ids: they are ignored
  request.prompt = golden.prompt_ids;
  request.max_new_tokens = static_cast<int>(golden.completion_ids.size()) + 10;
  const Completion completion = RunOne(GroupOptions({}), request);
  EXPECT_EQ(completion.finish, FinishReason::kLength);
  ASSERT_EQ(completion.tokens.size(), golden.completion_ids.size() + 10);
  EXPECT_TRUE(std::equal(golden.completion_ids.begin(),
                         golden.completion_ids.end(),
                         completion.tokens.begin()));
}

TEST(StoppingTest, NothingEndsItBeforeMinTokens) {
  const GoldenPrompt golden = EndingPrompt();
  const std::vector<int32_t>& undisturbed = golden.completion_ids;
  GenerationRequest request;
  request.prompt = golden.prompt_ids;
  request.max_new_tokens = 160;
  request.eos_token_ids = {807, 808};
  constexpr int kLong = 60;
  ASSERT_LT(undisturbed.size(), kLong - 5);
  for (const MeshCase& mesh : {MeshCase{1, 1}, {1, 1, true}}) {
    // Enough as it is.
    request.min_new_tokens = static_cast<int>(undisturbed.size()) - 1;
    Completion completion = RunOne(GroupOptions(mesh), request);
    EXPECT_EQ(completion.tokens, undisturbed);
    EXPECT_EQ(completion.finish, FinishReason::kEos);
    // Its end would be one token too early.
    request.min_new_tokens = static_cast<int>(undisturbed.size());
    completion = RunOne(GroupOptions(mesh), request);
    EXPECT_TRUE(std::equal(undisturbed.begin(), undisturbed.end() - 1,
                           completion.tokens.begin()));
    ASSERT_GE(completion.tokens.size(), undisturbed.size());
    EXPECT_THAT(completion.tokens[undisturbed.size() - 1],
                testing::Not(testing::AnyOf(807, 808)));
    // No end at all.
    request.min_new_tokens = request.max_new_tokens = kLong;
    completion = RunOne(GroupOptions(mesh), request);
    EXPECT_EQ(completion.finish, FinishReason::kLength);
    EXPECT_EQ(completion.tokens.size(), size_t{kLong});
    EXPECT_THAT(completion.tokens,
                testing::Each(testing::Not(testing::AnyOf(807, 808))));
    request.max_new_tokens = 160;
  }
}

TEST(StoppingTest, StopTokensWaitForMinTokens) {
  const GoldenPrompt golden = EndingPrompt();
  GenerationRequest request;
  request.prompt = golden.prompt_ids;
  request.max_new_tokens = 40;
  const int32_t stop = golden.completion_ids[2];
  request.stop_token_ids = {stop};
  request.sampling.logit_bias = {{stop, 100}};
  // The bias makes it the next token wherever it may come.
  Completion completion = RunOne(GroupOptions({}), request);
  EXPECT_EQ(completion.tokens, std::vector<int32_t>{stop});
  EXPECT_EQ(completion.finish, FinishReason::kStopToken);
  request.min_new_tokens = 7;
  completion = RunOne(GroupOptions({}), request);
  ASSERT_EQ(completion.tokens.size(), 8u);
  EXPECT_EQ(completion.finish, FinishReason::kStopToken);
  EXPECT_EQ(
      std::count(completion.tokens.begin(), completion.tokens.end(), stop), 1);
  // Tokens that came with the request count.
  request.generated.assign(5, 1);
  EXPECT_EQ(RunOne(GroupOptions({}), request).tokens.size(), 3u);
}

}  // namespace
}  // namespace ring
