// Made-up weights: the same model on every mesh, of the promised size.
#include "worker/model/dummy_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/dtype.h"
#include "kernels/cpu_backend.h"
#include "tests/worker/model/world.h"
#include "worker/model/weight_shard.h"
#include "worker/model_files/inventory.h"

namespace ring {
namespace {

ModelConfig SmallConfig() {
  ModelConfig c;
  c.hidden_size = 200;
  c.num_hidden_layers = 2;
  c.num_attention_heads = 8;
  c.num_key_value_heads = 4;
  c.head_dim = 40;
  c.layer_group_size = 2;
  c.group_norm_size = 4;
  c.intermediate_size = 320;
  c.first_k_dense_replace = 1;
  c.num_experts = 8;
  c.num_experts_per_tok = 2;
  c.num_shared_experts = 1;
  c.moe_intermediate_size = 136;
  c.n_group = 4;
  c.topk_group = 2;
  c.rotary_dim = 20;
  c.vocab_size = 97;
  return c;
}

WeightShard Make(int tp, int rank, WeightFormat format, uint64_t seed = 7,
                 bool slice_experts = false) {
  const ModelConfig config = SmallConfig();
  ShardSpec spec = SpecsOfWorld(config, tp, 1, slice_experts)[rank];
  spec.format = format;
  auto shard = WeightShard::MakeUp(config, spec, seed, 2);
  EXPECT_TRUE(shard.ok()) << shard.status();
  return *std::move(shard);
}

float At(const WeightMatrix& w, int64_t i, int64_t j) {
  const int64_t at = i * w.row_stride + j;
  if (w.dtype == DType::kFloat8E4M3) {
    return ToFloat(static_cast<const Float8E4M3*>(w.data)[at]) *
           w.scales[w.row_scale[i] * w.scale_cols +
                    (w.scale_col_offset + j) / 128];
  }
  if (w.dtype == DType::kFloat32) return static_cast<const float*>(w.data)[at];
  return ToFloat(static_cast<const BFloat16*>(w.data)[at]);
}

// part[i][j] = whole[row + i][col + j]
void ExpectPart(const WeightMatrix& part, const WeightMatrix& whole,
                int64_t row, int64_t col) {
  ASSERT_GT(part.rows * part.cols, 0);
  for (int64_t i = 0; i < part.rows; ++i) {
    for (int64_t j = 0; j < part.cols; ++j) {
      ASSERT_EQ(At(part, i, j), At(whole, row + i, col + j)) << i << ", " << j;
    }
  }
}

TEST(DummyWeightsTest, GivesEveryMeshTheSameModel) {
  for (WeightFormat format :
       {WeightFormat::kAsStored, WeightFormat::kBlockFp8}) {
    const WeightShard whole = Make(1, 0, format);
    const LayerWeights& dense = whole.weights().layers[0];
    const LayerWeights& sparse = whole.weights().layers[1];
    for (int rank = 0; rank < 8; ++rank) {
      const WeightShard shard = Make(8, rank, format);
      const LayerWeights& layer = shard.weights().layers[0];
      ExpectPart(layer.attention.dense, dense.attention.dense, 0, rank * 40);
      ExpectPart(layer.attention.g_proj, dense.attention.g_proj, rank * 40, 0);
      ExpectPart(layer.dense_mlp.down, dense.dense_mlp.down, 0, rank * 40);
      ExpectPart(shard.weights().lm_head, whole.weights().lm_head, rank * 13,
                 0);
      const MoeWeights& moe = shard.weights().layers[1].moe;
      ASSERT_EQ(moe.experts.size(), 1u);
      ExpectPart(moe.experts[0].down, sparse.moe.experts[rank].down, 0, 0);
      ExpectPart(moe.shared_expert_slice.down, sparse.moe.shared_expert.down, 0,
                 rank * 17);
      ExpectPart(moe.router, sparse.moe.router, 0, 0);
      for (int64_t i = 0; i < 40; ++i) {
        ASSERT_EQ(layer.attention.g_norm[i],
                  dense.attention.g_norm[rank * 40 + i]);
      }
    }
  }
}

// Slices of 34 inner columns, whose blocks of 128 begin elsewhere.
TEST(DummyWeightsTest, SlicesTheSameExperts) {
  for (WeightFormat format :
       {WeightFormat::kAsStored, WeightFormat::kBlockFp8}) {
    const WeightShard whole = Make(1, 0, format);
    const auto& all = whole.weights().layers[1].moe.experts;
    for (int rank = 0; rank < 4; ++rank) {
      const WeightShard shard =
          Make(4, rank, format, /*seed=*/7, /*slice_experts=*/true);
      const auto& slices = shard.weights().layers[1].moe.experts;
      ASSERT_EQ(slices.size(), all.size());
      for (size_t e = 0; e < all.size(); ++e) {
        ASSERT_EQ(slices[e].gate.rows, 34);
        ExpectPart(slices[e].gate, all[e].gate, rank * 34, 0);
        ExpectPart(slices[e].up, all[e].up, rank * 34, 0);
        ExpectPart(slices[e].down, all[e].down, 0, rank * 34);
      }
    }
  }
}

TEST(DummyWeightsTest, AreTheSameOnADevice) {
  const ModelConfig config = SmallConfig();
  const auto backend = MakeCpuBackend(1);
  for (const auto& [format, sliced] :
       {std::pair(WeightFormat::kAsStored, false),
        std::pair(WeightFormat::kBlockFp8, false),
        std::pair(WeightFormat::kBlockFp8, true)}) {
    ShardSpec spec = SpecsOfWorld(config, 2, 1, sliced)[1];
    spec.format = format;
    const auto host = WeightShard::MakeUp(config, spec, 7, 2);
    const auto device = WeightShard::MakeUpOn(config, spec, 7, backend.get());
    ASSERT_TRUE(host.ok() && device.ok()) << device.status();
    const LayerWeights& a = host->weights().layers[1];
    const LayerWeights& b = device->weights().layers[1];
    ExpectPart(b.attention.query_key_value, a.attention.query_key_value, 0, 0);
    ExpectPart(b.moe.experts[1].down, a.moe.experts[1].down, 0, 0);
    ExpectPart(b.moe.router, a.moe.router, 0, 0);
    ExpectPart(device->weights().lm_head, host->weights().lm_head, 0, 0);
    const absl::Span<const float> norm = b.post_attention_layernorm;
    EXPECT_EQ(std::vector<float>(norm.begin(), norm.end()),
              std::vector<float>(a.post_attention_layernorm.begin(),
                                 a.post_attention_layernorm.end()));
    const absl::Span<const float> rates =
        device->weights().layers[0].attention.decay_rates;
    EXPECT_EQ(std::vector<float>(rates.begin(), rates.end()),
              std::vector<float>(
                  host->weights().layers[0].attention.decay_rates.begin(),
                  host->weights().layers[0].attention.decay_rates.end()));
  }
}

TEST(DummyWeightsTest, DependsOnSeedAndName) {
  const WeightShard a = Make(1, 0, WeightFormat::kAsStored, 1);
  const WeightShard b = Make(1, 0, WeightFormat::kAsStored, 2);
  const WeightMatrix& up = a.weights().layers[1].moe.experts[0].up;
  const WeightMatrix& gate = a.weights().layers[1].moe.experts[0].gate;
  const WeightMatrix& other = b.weights().layers[1].moe.experts[0].up;
  int same_name = 0;
  int same_seed = 0;
  for (int64_t j = 0; j < 200; ++j) {
    same_name += At(up, 0, j) == At(other, 0, j);
    same_seed += At(up, 0, j) == At(gate, 0, j);
  }
  EXPECT_LT(same_name, 10);
  EXPECT_LT(same_seed, 10);
}

// Mean and deviation of n draws are within 5 standard errors.
void ExpectDistribution(const std::vector<double>& values, double mean,
                        double deviation) {
  double sum = 0;
  double squares = 0;
  for (double v : values) sum += v;
  const double n = static_cast<double>(values.size());
  for (double v : values) squares += (v - sum / n) * (v - sum / n);
  EXPECT_NEAR(sum / n, mean, 5 * deviation / std::sqrt(n));
  EXPECT_NEAR(std::sqrt(squares / n), deviation,
              5 * deviation / std::sqrt(2 * n));
}

std::vector<double> Values(const WeightMatrix& w) {
  std::vector<double> values;
  for (int64_t i = 0; i < w.rows; ++i) {
    for (int64_t j = 0; j < w.cols; ++j) values.push_back(At(w, i, j));
  }
  return values;
}

TEST(DummyWeightsTest, HasThePromisedDistributions) {
  const WeightShard shard = Make(1, 0, WeightFormat::kAsStored);
  const ModelWeights& model = shard.weights();
  ExpectDistribution(Values(model.word_embeddings), 0, 1);
  ExpectDistribution(Values(model.lm_head), 0, 1 / std::sqrt(200.0));
  ExpectDistribution(Values(model.layers[0].attention.dense), 0,
                     1 / std::sqrt(320.0));
  ExpectDistribution(Values(model.layers[1].moe.router), 0,
                     1.5 / std::sqrt(200.0));
  const absl::Span<const float> norm = model.layers[0].attention.g_norm;
  ExpectDistribution(std::vector<double>(norm.begin(), norm.end()), 1, 0.1);
}

TEST(DummyWeightsTest, NeighboursAreNotCorrelated) {
  const WeightShard shard = Make(1, 0, WeightFormat::kAsStored);
  const std::vector<double> v = Values(shard.weights().word_embeddings);
  for (size_t lag : {1, 2, 4, 8, 16, 200}) {
    double sum = 0;
    for (size_t i = lag; i < v.size(); ++i) sum += v[i] * v[i - lag];
    const double n = static_cast<double>(v.size() - lag);
    EXPECT_LT(std::fabs(sum / n), 5 / std::sqrt(n)) << "lag " << lag;
  }
}

// Each of the matrices is a task at least.
TEST(DummyWeightsTest, TicksForTheWatchdog) {
  const ModelConfig config = SmallConfig();
  Progress progress;
  const auto shard = WeightShard::MakeUp(config, SpecsOfWorld(config, 1, 1)[0],
                                         /*seed=*/1, /*threads=*/2, &progress);
  ASSERT_TRUE(shard.ok()) << shard.status();
  EXPECT_GT(progress.ticks, config.num_experts);
}

TEST(DummyWeightsTest, FollowsAConfigThatSaysFp8) {
  ModelConfig config = SmallConfig();
  config.quantization = Quantization::kBlockFp8;
  const auto shard =
      WeightShard::MakeUp(config, SpecsOfWorld(config, 1, 1)[0], 1, 1);
  ASSERT_TRUE(shard.ok()) << shard.status();
  EXPECT_EQ(shard->weights().layers[0].attention.dense.dtype,
            DType::kFloat8E4M3);
  EXPECT_EQ(shard->weights().lm_head.dtype, DType::kBFloat16);
}

}  // namespace
}  // namespace ring
