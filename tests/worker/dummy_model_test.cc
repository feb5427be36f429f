// What made-up weights are good for: rows meet all experts alike, and a whole
// model computes with numbers of ordinary size.
#include <stdlib.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/mutex.h"
#include "kernels/cpu_backend.h"
#include "kernels/moe_routing/moe_routing.h"
#include "tests/kernels/tensor_support.h"
#include "tests/support/mini_group.h"
#include "tests/worker/model/world.h"
#include "worker/model/weight_shard.h"
#include "worker/model_files/json.h"

namespace ring {
namespace {

Json PublishedConfig(const std::string& name) {
  const absl::StatusOr<Json> json =
      ReadJsonFile(std::string(RING_TEST_DATA) + "/configs/" + name);
  EXPECT_TRUE(json.ok()) << json.status();
  Json config = *json;
  config["eos_token_id"] = config["pad_token_id"] = 1;  // small vocabularies
  return config;
}

// How often each expert of layer 1 is taken by `rows` random rows.
std::vector<int> CountChoices(const ModelConfig& config, int rows) {
  const auto shard =
      WeightShard::MakeUp(config, SpecsOfWorld(config, 1, 1)[0], /*seed=*/1,
                          /*threads=*/2);
  EXPECT_TRUE(shard.ok()) << shard.status();
  const LayerWeights& layer = shard->weights().layers[1];
  const std::vector<float> x =
      RandomFloats(rows * config.hidden_size, /*seed=*/5);
  std::vector<float> normed(x.size());
  std::vector<float> logits(static_cast<size_t>(rows) * config.num_experts);
  std::vector<int32_t> experts(static_cast<size_t>(rows) *
                               config.num_experts_per_tok);
  std::vector<float> weights(experts.size());
  MoeRoutingArgs args;
  args.x = x.data();
  args.rows = rows;
  args.norm_weight = layer.post_attention_layernorm.data();
  args.eps = config.rms_norm_eps;
  args.normed = normed.data();
  args.router = layer.moe.router;
  args.expert_bias = layer.moe.expert_bias.data();
  args.num_experts = config.num_experts;
  args.n_group = config.n_group;
  args.topk_group = config.topk_group;
  args.top_k = config.num_experts_per_tok;
  args.logits = logits.data();
  args.experts = experts.data();
  args.weights = weights.data();
  MakeCpuBackend(1)->MoeRouting(args);
  std::vector<int> chosen(config.num_experts);
  for (int32_t expert : experts) ++chosen.at(expert);
  return chosen;
}

// P(X = k) of the binomial distribution.
double Binomial(int n, int k, double p) {
  return std::exp(std::lgamma(n + 1.0) - std::lgamma(k + 1.0) -
                  std::lgamma(n - k + 1.0) + k * std::log(p) +
                  (n - k) * std::log1p(-p));
}

// [least, most] that each of `experts` is chosen in all but one of a million
// trials, if every row takes each with probability p.
std::pair<int, int> FairRange(int rows, int experts, double p) {
  const double tail = 1e-6 / (2.0 * experts);
  int least = 0;
  double below = Binomial(rows, 0, p);
  while (below < tail) below += Binomial(rows, ++least, p);
  int most = rows;
  double above = Binomial(rows, rows, p);
  while (above < tail) above += Binomial(rows, --most, p);
  return {least, most};
}

TEST(DummyRouterTest, RowsSpreadOverAllExperts) {
  Json json = PublishedConfig("flash.json");
  // Around the router of the published size.
  json["num_hidden_layers"] = 2;
  json["layer_group_size"] = 2;
  json["num_attention_heads"] = 4;
  json["intermediate_size"] = 64;
  json["moe_intermediate_size"] = 8;
  json["moe_shared_expert_intermediate_size"] = 8;
  json["vocab_size"] = 64;
  const auto file = ParseModelConfig(json);
  ASSERT_TRUE(file.ok()) << file.status();
  const ModelConfig& config = file->config;
  ASSERT_EQ(config.num_experts, 256);

  constexpr int kRows = 2048;
  const auto [least, most] =
      FairRange(kRows, config.num_experts,
                double(config.num_experts_per_tok) / config.num_experts);
  EXPECT_GT(least, 0);
  const std::vector<int> chosen = CountChoices(config, kRows);
  for (int expert = 0; expert < config.num_experts; ++expert) {
    EXPECT_GE(chosen[expert], least) << "expert " << expert;
    EXPECT_LE(chosen[expert], most) << "expert " << expert;
  }
}

double MeanSquare(const std::vector<float>& values) {
  double sum = 0;
  for (float v : values) sum += double{v} * v;
  return sum / static_cast<double>(values.size());
}

class DummyModelTest : public testing::TestWithParam<WeightFormat> {};

// flash-1b, narrower. Every matrix keeps the mean square of what it reads,
// which is 1.01 after a norm. So a layer adds to the residual stream at most:
// by attention 1.01, as it takes means of values, or norms and gates them; by
// an MLP E[silu(z)^2 u^2] < 0.37 for each expert, times the square of its
// weight. Eight weights in proportion to scores in [1/2, 1], the upper half of
// a sigmoid's, have squares of at most 9/8 of those of equal ones
// (Kantorovich).
TEST_P(DummyModelTest, KeepsItsNumbersOfOrdinarySize) {
  constexpr int kHidden = 512;
  constexpr int kVocab = 4096;
  constexpr int kPrompt = 96;
  Json json = PublishedConfig("flash-1b.json");
  json["hidden_size"] = kHidden;
  json["moe_intermediate_size"] = 128;
  json["moe_shared_expert_intermediate_size"] = 128;
  json["intermediate_size"] = 1024;
  json["vocab_size"] = kVocab;
  std::string folder = testing::TempDir() + "ring_dummy_XXXXXX";
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  std::ofstream(folder + "/config.json") << json;

  Mutex mutex;
  std::map<int, std::vector<float>> hidden;
  std::vector<float> logits;
  MiniGroup::Options options;
  options.model_dir = folder;
  options.dummy_weights = true;
  options.format = GetParam();
  options.activation_dtype = DType::kBFloat16;
  options.on_ready = [&](int, const Mesh&, Engine* engine) {
    engine->model().set_layer_observer(
        [&](int layer, const float* residual, Range rows) {
          MutexLock lock(&mutex);
          hidden[layer].assign(residual, residual + rows.size() * kHidden);
        });
    engine->set_step_observer([&](const auto&, const float* values) {
      MutexLock lock(&mutex);
      logits.assign(values, values + kVocab);
    });
  };
  auto group = MiniGroup::Start(options);
  ASSERT_TRUE(group.ok()) << group.status();
  GenerationRequest request;
  for (int i = 0; i < kPrompt; ++i) request.prompt.push_back(i * 37 % kVocab);
  request.max_new_tokens = 1;
  ASSERT_TRUE((*group)->Run(request).error.ok());
  group->reset();
  std::filesystem::remove_all(folder);

  MutexLock lock(&mutex);
  ASSERT_EQ(hidden.size(), 8u);
  const double scaling = json["routed_scaling_factor"];
  const double routed = scaling * scaling / 8 * 9 / 8;
  const double added = 1.01 + 0.37 * (routed + 1);
  for (const auto& [layer, values] : hidden) {
    EXPECT_GT(MeanSquare(values), 1) << "layer " << layer;
    EXPECT_LT(MeanSquare(values), 1 + added * (layer + 1)) << "layer " << layer;
  }
  // A logit is a sum of independent draws over a normed row.
  EXPECT_NEAR(MeanSquare(logits), 1.01, 5 * std::sqrt(2.0 / kVocab));
}

INSTANTIATE_TEST_SUITE_P(, DummyModelTest,
                         testing::Values(WeightFormat::kAsStored,
                                         WeightFormat::kBlockFp8));

}  // namespace
}  // namespace ring
