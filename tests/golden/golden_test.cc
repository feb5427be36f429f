// The engine against the float64 results of the bundled model, on every mesh
// and over both exchanges.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <string>
#include <tuple>

#include "gtest/gtest.h"
#include "kernels/base/mutex.h"
#include "ring/v1/plan.pb.h"
#include "tests/support/golden_file.h"
#include "tests/support/mini_group.h"

namespace ring {
namespace {

constexpr int kTokenizerIds = 813;
constexpr int32_t kEos[] = {807, 808};
// Relative error allowed: rounding of bf16 activations (2^-9 a value, through
// 8 layers) or of fp32.
constexpr double kBfloat16Tolerance = 2e-2;
constexpr double kFloat32Tolerance = 1e-4;
// With bf16 rounding, a token whose router scores are nearly tied may go to
// another expert, or group of experts, than in float64. So many of the 43
// prompts may exceed the tolerance for that reason, by so much. On CPUs it is
// what they show; a GPU rounds elsewhere and turned the choice that moves
// prompt 30 by 0.080 in float64 too (0.079 and 0.082 there). Turning one choice
// of one token in the float64 model, of those that less than 2e-3 decides,
// moves the logits by up to 0.105.
constexpr int kFlippedPrompts = 4;
constexpr double kFlippedTolerance = 0.05;
constexpr double kFlippedToleranceOnGpu = 0.11;
// Of the 80 tokens whose hidden states are known: those that went to another
// expert, and those that attend to them.
constexpr int kFlippedTokens = 8;

struct Shape {
  int dp;
  int tp;
  bool sliced_experts = false;
};

// Where the ranks run: RING_TEST_DEVICE, else the CPU.
std::string TestDevice() {
  const char* const device = std::getenv("RING_TEST_DEVICE");
  return device != nullptr ? device : "cpu";
}

// Waits for `engine`'s device and returns what lies there.
std::vector<float> ToHost(Engine* engine, const float* values, int64_t n) {
  std::vector<float> host(n);
  engine->backend().CopyToHost(host.data(), values,
                               n * static_cast<int64_t>(sizeof(float)));
  engine->backend().Synchronize();
  return host;
}

using Parameters = std::tuple<Shape, Scheduler::ExchangePolicy, DType>;

class GoldenTest : public testing::TestWithParam<Parameters> {
 protected:
  MiniGroup::Options GroupOptions() const {
    const auto& [shape, exchange, dtype] = GetParam();
    MiniGroup::Options options;
    options.model_dir = RingTinyDir();
    options.dp = shape.dp;
    options.tp = shape.tp;
    options.sliced_experts = shape.sliced_experts;
    options.exchange = exchange;
    options.activation_dtype = dtype;
    options.num_token_ids = kTokenizerIds;
    options.device = TestDevice();
    options.pad_decode_rows = options.device != "cpu";
    options.overlap = options.pad_decode_rows;
    return options;
  }
  double Tolerance() const {
    return std::get<DType>(GetParam()) == DType::kFloat32 ? kFloat32Tolerance
                                                          : kBfloat16Tolerance;
  }
};

GenerationRequest GreedyRequest(const GoldenPrompt& golden, int new_tokens) {
  GenerationRequest request;
  request.prompt = golden.prompt_ids;
  request.max_new_tokens = new_tokens;
  request.eos_token_ids.assign(std::begin(kEos), std::end(kEos));
  return request;
}

// All prompts at once, so that they share batches.
TEST_P(GoldenTest, GreedyCompletionsAreExact) {
  const std::vector<GoldenPrompt> prompts = ReadGoldenPrompts();
  ASSERT_EQ(prompts.size(), 43u);
  auto group = MiniGroup::Start(GroupOptions());
  ASSERT_TRUE(group.ok()) << group.status();
  std::vector<uint64_t> ids;
  for (const GoldenPrompt& prompt : prompts) {
    ids.push_back((*group)->Submit(GreedyRequest(prompt, 160)));
  }
  for (size_t i = 0; i < prompts.size(); ++i) {
    const Completion completion = (*group)->Wait(ids[i]);
    ASSERT_TRUE(completion.error.ok()) << completion.error;
    EXPECT_EQ(completion.tokens, prompts[i].completion_ids) << "prompt " << i;
  }
}

// Puts the vocabulary slices of a group's ranks together. A rank may show its
// slice after the others have gone on.
class LogitCollector {
 public:
  explicit LogitCollector(int num_slices) : num_slices_(num_slices) {}

  void Watch(int vocab_size, const Mesh& mesh, Engine* engine) {
    const Range slice = mesh.vocab();
    const int group = mesh.dp_rank();
    engine->set_step_observer(
        [=, this](const v1::BatchPlan& plan, const float* logits) {
          if (plan.groups(group).samples_size() == 0) return;
          const std::vector<float> own = ToHost(engine, logits, slice.size());
          MutexLock lock(&mutex_);
          logits_.resize(vocab_size);
          std::copy(own.begin(), own.end(), logits_.begin() + slice.begin);
          ++slices_;
          changed_.NotifyAll();
        });
  }
  // Of the one step with samples since the last call; waits for all slices.
  std::vector<float> Take() {
    MutexLock lock(&mutex_);
    while (slices_ < num_slices_) changed_.Wait(&mutex_);
    slices_ = 0;
    return std::move(logits_);
  }

 private:
  const int num_slices_;
  Mutex mutex_;
  CondVar changed_;
  int slices_ GUARDED_BY(mutex_) = 0;
  std::vector<float> logits_ GUARDED_BY(mutex_);
};

TEST_P(GoldenTest, LogitsAfterThePromptAreClose) {
  const std::vector<GoldenPrompt> prompts = ReadGoldenPrompts();
  MiniGroup::Options options = GroupOptions();
  LogitCollector collector(options.tp);
  options.on_ready = [&](int, const Mesh& mesh, Engine* engine) {
    collector.Watch(1024, mesh, engine);
  };
  auto group = MiniGroup::Start(options);
  ASSERT_TRUE(group.ok()) << group.status();
  int flipped = 0;
  std::vector<double> errors;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const Completion completion = (*group)->Run(GreedyRequest(prompts[i], 1));
    ASSERT_TRUE(completion.error.ok()) << completion.error;
    const double error = RelativeL2(
        collector.Take(), ReadGoldenTensor("logits." + std::to_string(i)));
    errors.push_back(error);
    if (error <= Tolerance()) continue;
    ++flipped;
    EXPECT_LE(error, TestDevice() == "cpu" ? kFlippedTolerance
                                           : kFlippedToleranceOnGpu)
        << "prompt " << i;
  }
  EXPECT_LE(flipped, Tolerance() == kFloat32Tolerance ? 0 : kFlippedPrompts);
  std::sort(errors.begin(), errors.end());
  EXPECT_LE(errors[errors.size() / 2], Tolerance() / 5);
  std::printf(
      "relative error of logits: median %.1e, worst %.1e, beyond %g: %d\n",
      errors[errors.size() / 2], errors.back(), Tolerance(), flipped);
}

// Pieces of `budget` tokens, whatever the chunks of the linear layers, the
// pages and the blocks of the softmax layers are.
TEST(PromptCutTest, AnywhereEqualsWhole) {
  const std::vector<GoldenPrompt> prompts = ReadGoldenPrompts();
  for (const int64_t budget : {2, 7, 63, 65, 100}) {
    MiniGroup::Options options;
    options.model_dir = RingTinyDir();
    options.tp = 2;
    options.exchange = Scheduler::ExchangePolicy::kAllToAll;
    options.num_token_ids = kTokenizerIds;
    options.max_sequences = 1;
    options.max_batch_tokens = budget;
    options.prompt_cut = 1;
    LogitCollector collector(options.tp);
    options.on_ready = [&](int, const Mesh& mesh, Engine* engine) {
      collector.Watch(1024, mesh, engine);
    };
    auto group = MiniGroup::Start(options);
    ASSERT_TRUE(group.ok()) << group.status();
    for (size_t i = 0; i < prompts.size(); ++i) {
      const auto length = static_cast<int64_t>(prompts[i].prompt_ids.size());
      if (length <= budget || length > 100 * budget) continue;
      const Completion completion = (*group)->Run(GreedyRequest(prompts[i], 1));
      ASSERT_TRUE(completion.error.ok()) << completion.error;
      EXPECT_LE(RelativeL2(collector.Take(),
                           ReadGoldenTensor("logits." + std::to_string(i))),
                kFloat32Tolerance)
          << "prompt " << i << " in pieces of " << budget;
    }
  }
}

// Residual stream after every layer over prompt 0 and its completion.
TEST_P(GoldenTest, HiddenStatesAreClose) {
  const GoldenPrompt golden = ReadGoldenPrompts()[0];
  constexpr int kHidden = 128;
  Mutex mutex;
  std::map<int, std::vector<float>> hidden;
  MiniGroup::Options options = GroupOptions();
  options.on_ready = [&](int, const Mesh& mesh, Engine* engine) {
    if (mesh.dp_rank() != 0) return;
    engine->model().set_layer_observer(
        [&, engine](int layer, const float* residual, Range rows) {
          const std::vector<float> own =
              ToHost(engine, residual, rows.size() * kHidden);
          MutexLock lock(&mutex);
          std::vector<float>& all = hidden[layer];
          all.resize(std::max<size_t>(all.size(), rows.end * kHidden));
          std::copy(own.begin(), own.end(), all.begin() + rows.begin * kHidden);
        });
  };
  auto group = MiniGroup::Start(options);
  ASSERT_TRUE(group.ok()) << group.status();
  // The whole text as a prompt: one step, whose rows are the positions.
  GenerationRequest request = GreedyRequest(golden, 1);
  request.prompt.insert(request.prompt.end(), golden.completion_ids.begin(),
                        golden.completion_ids.end());
  ASSERT_TRUE((*group)->Run(request).error.ok());
  MutexLock lock(&mutex);
  ASSERT_EQ(hidden.size(), 8u);
  for (const auto& [layer, values] : hidden) {
    const std::vector<float> golden_values =
        ReadGoldenTensor("hidden." + std::to_string(layer));
    ASSERT_EQ(values.size(), golden_values.size());
    int beyond = 0;
    for (size_t i = 0; i < values.size(); i += kHidden) {
      const auto token = [i](const std::vector<float>& all) {
        return std::vector<float>(all.begin() + i, all.begin() + i + kHidden);
      };
      beyond += RelativeL2(token(values), token(golden_values)) > Tolerance();
    }
    EXPECT_LE(beyond, Tolerance() == kFloat32Tolerance ? 0 : kFlippedTokens)
        << "of " << values.size() / kHidden << " tokens, layer " << layer;
    EXPECT_LE(RelativeL2(values, golden_values), kFlippedTolerance)
        << "layer " << layer;
  }
}

std::string NameOf(const testing::TestParamInfo<Parameters>& info) {
  const auto& [shape, exchange, dtype] = info.param;
  return "dp" + std::to_string(shape.dp) + "_tp" + std::to_string(shape.tp) +
         (shape.sliced_experts ? "_sliced" : "") +
         (exchange == Scheduler::ExchangePolicy::kReplicated ? "_replicated_"
                                                             : "_alltoall_") +
         Name(dtype);
}

INSTANTIATE_TEST_SUITE_P(
    Meshes, GoldenTest,
    testing::Combine(testing::Values(Shape{1, 1}, Shape{1, 2}, Shape{1, 4},
                                     Shape{2, 1}, Shape{2, 2}, Shape{4, 1}),
                     testing::Values(Scheduler::ExchangePolicy::kReplicated,
                                     Scheduler::ExchangePolicy::kAllToAll),
                     testing::Values(DType::kFloat32, DType::kBFloat16)),
    NameOf);

INSTANTIATE_TEST_SUITE_P(
    SlicedExperts, GoldenTest,
    testing::Combine(testing::Values(Shape{1, 2, true}, Shape{1, 4, true}),
                     testing::Values(Scheduler::ExchangePolicy::kReplicated,
                                     Scheduler::ExchangePolicy::kAllToAll),
                     testing::Values(DType::kFloat32, DType::kBFloat16)),
    NameOf);

}  // namespace
}  // namespace ring
