// Every slice of every rank against the whole tensors that were written.
#include "worker/model/weight_shard.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/dtype.h"
#include "kernels/cpu_backend.h"
#include "tests/support/tiny_checkpoint.h"
#include "tests/worker/model/world.h"
#include "worker/model/checkpoint_reader.h"
#include "worker/model_files/inventory.h"

namespace ring {
namespace {

using Indices = std::vector<int64_t>;
using ::testing::HasSubstr;

Indices Span(int64_t begin, int64_t end) {
  Indices indices(static_cast<size_t>(end - begin));
  std::iota(indices.begin(), indices.end(), begin);
  return indices;
}

// By the formula of weight_matrix.h.
double Decode(const WeightMatrix& w, int64_t i, int64_t j) {
  const int64_t at = i * w.row_stride + j;
  switch (w.dtype) {
    case DType::kBFloat16:
      return ToFloat(static_cast<const BFloat16*>(w.data)[at]);
    case DType::kFloat32:
      return static_cast<const float*>(w.data)[at];
    case DType::kFloat8E4M3:
      return double{ToFloat(static_cast<const Float8E4M3*>(w.data)[at])} *
             w.scales[w.row_scale[i] * w.scale_cols +
                      (w.scale_col_offset + j) / 128];
    default:
      ADD_FAILURE() << Name(w.dtype);
      return 0;
  }
}

// Compares a loaded shard with the tensors of a TinyCheckpoint.
class ShardOracle {
 public:
  ShardOracle(const TinyCheckpoint& tiny, const nlohmann::json& config,
              const ShardSpec& spec)
      : tiny_(tiny), config_(config), spec_(spec) {}

  void ExpectRight(const ModelWeights& model) {
    const int64_t chunk = (Size("vocab_size") + spec_.tp - 1) / spec_.tp;
    const Indices vocab =
        Span(std::min(spec_.tp_rank * chunk, Size("vocab_size")),
             std::min((spec_.tp_rank + 1) * chunk, Size("vocab_size")));
    if (!vocab.empty()) {
      EXPECT_EQ(model.vocab_begin, vocab.front());
    }
    ExpectMatrix(model.word_embeddings, "model.word_embeddings.weight", vocab,
                 All("hidden_size"));
    ExpectMatrix(model.lm_head, "lm_head.weight", vocab, All("hidden_size"));
    ExpectVector(model.norm, "model.norm.weight", All("hidden_size"));
    ASSERT_EQ(static_cast<int64_t>(model.layers.size()),
              Size("num_hidden_layers"));
    for (size_t l = 0; l < model.layers.size(); ++l) {
      ExpectLayer(model.layers[l], static_cast<int>(l));
    }
  }

 private:
  int64_t Size(const char* name) const { return config_.at(name); }
  Indices All(const char* name) const { return Span(0, Size(name)); }
  // This rank's 1 / tp of a size.
  Indices Mine(int64_t size) const {
    return Span(size * spec_.tp_rank / spec_.tp,
                size * (spec_.tp_rank + 1) / spec_.tp);
  }

  void ExpectLayer(const LayerWeights& layer, int l) {
    const std::string prefix = "model.layers." + std::to_string(l) + ".";
    const std::string attention = prefix + "attention.";
    const int64_t group = Size("layer_group_size");
    const bool softmax =
        (l + 1) % group == 0 || l >= Size("num_hidden_layers") / group * group;
    const int64_t dim = Size("head_dim");
    const int64_t query = Size("num_attention_heads") * dim;
    const int64_t kv_heads =
        softmax ? Size("num_key_value_heads") : Size("num_attention_heads");
    ExpectVector(layer.input_layernorm, prefix + "input_layernorm.weight",
                 All("hidden_size"));
    ExpectVector(layer.post_attention_layernorm,
                 prefix + "post_attention_layernorm.weight",
                 All("hidden_size"));
    // KV heads: a slice, or one head that tp / kv_heads ranks share.
    Indices kv = Mine(kv_heads * dim);
    if (spec_.tp > kv_heads) {
      const int64_t head = spec_.tp_rank / (spec_.tp / kv_heads);
      kv = Span(head * dim, (head + 1) * dim);
    }
    Indices rows = Mine(query);
    for (int64_t row : kv) rows.push_back(query + row);
    for (int64_t row : kv) rows.push_back(query + kv_heads * dim + row);
    ExpectMatrix(layer.attention.query_key_value,
                 attention + "query_key_value.weight", rows,
                 All("hidden_size"));
    ExpectVector(layer.attention.query_layernorm,
                 attention + "query_layernorm.weight", All("head_dim"));
    ExpectVector(layer.attention.key_layernorm,
                 attention + "key_layernorm.weight", All("head_dim"));
    ExpectMatrix(layer.attention.dense, attention + "dense.weight",
                 All("hidden_size"), Mine(query));
    if (softmax) {
      EXPECT_TRUE(layer.attention.g_proj.empty());
      EXPECT_TRUE(layer.attention.decay_rates.empty());
    } else {
      ExpectMatrix(layer.attention.g_proj, attention + "g_proj.weight",
                   Mine(query), All("hidden_size"));
      ExpectVector(layer.attention.g_norm, attention + "g_norm.weight",
                   Mine(query));
      ExpectDecayRates(layer.attention.decay_rates, l);
    }
    if (l < Size("first_k_dense_replace")) {
      ExpectMlp(layer.dense_mlp, prefix + "mlp.",
                Mine(Size("intermediate_size")));
      EXPECT_TRUE(layer.moe.experts.empty());
      return;
    }
    const MoeWeights& moe = layer.moe;
    ExpectMatrix(moe.router, prefix + "mlp.gate.weight", All("num_experts"),
                 All("hidden_size"));
    ExpectVector(moe.expert_bias, prefix + "mlp.gate.expert_bias",
                 All("num_experts"));
    ASSERT_EQ(moe.experts.size(), spec_.experts[l].size());
    const int64_t inner = Size("moe_intermediate_size");
    for (size_t e = 0; e < moe.experts.size(); ++e) {
      ExpectMlp(
          moe.experts[e],
          prefix + "mlp.experts." + std::to_string(spec_.experts[l][e]) + ".",
          spec_.slice_experts ? Mine(inner) : Span(0, inner));
    }
    const int64_t shared = inner * Size("num_shared_experts");
    ExpectMlp(moe.shared_expert, prefix + "mlp.shared_experts.",
              Span(0, shared));
    ExpectMlp(moe.shared_expert_slice, prefix + "mlp.shared_experts.",
              Mine(shared));
  }

  void ExpectMlp(const GatedMlpWeights& mlp, const std::string& prefix,
                 const Indices& inner) {
    const Indices hidden = All("hidden_size");
    ExpectMatrix(mlp.gate, prefix + "gate_proj.weight", inner, hidden);
    ExpectMatrix(mlp.up, prefix + "up_proj.weight", inner, hidden);
    ExpectMatrix(mlp.down, prefix + "down_proj.weight", hidden, inner);
  }

  // Bit for bit: loading does not round.
  void ExpectMatrix(const WeightMatrix& w, const std::string& name,
                    const Indices& rows, const Indices& cols) {
    const TinyCheckpoint::Tensor& whole = tiny_.tensors().at(name);
    ASSERT_EQ(w.rows, static_cast<int64_t>(rows.size())) << name;
    ASSERT_EQ(w.cols, static_cast<int64_t>(cols.size())) << name;
    for (size_t i = 0; i < rows.size(); ++i) {
      for (size_t j = 0; j < cols.size(); ++j) {
        ASSERT_EQ(Decode(w, i, j),
                  whole.values[rows[i] * whole.shape[1] + cols[j]])
            << name << " (" << rows[i] << ", " << cols[j] << ")";
      }
    }
    ExpectSharedScaleRows(w, name);
  }

  // Rows of a run share their scales.
  void ExpectSharedScaleRows(const WeightMatrix& w, const std::string& name) {
    ASSERT_GE(w.scale_row_run, 1) << name;
    ASSERT_EQ(128 % w.scale_row_run, 0) << name;
    if (w.row_scale == nullptr) return;
    for (int64_t i = 0; i < w.rows; ++i) {
      ASSERT_EQ(w.row_scale[i],
                w.row_scale[i / w.scale_row_run * w.scale_row_run])
          << name << " " << i;
    }
  }

  void ExpectVector(absl::Span<const float> v, const std::string& name,
                    const Indices& places) {
    const TinyCheckpoint::Tensor& whole = tiny_.tensors().at(name);
    ASSERT_EQ(v.size(), places.size()) << name;
    for (size_t i = 0; i < places.size(); ++i) {
      ASSERT_EQ(v[i], whole.values[places[i]]) << name << " " << places[i];
    }
  }

  // Powers of two only: the configs of this file have 4 or 8 heads.
  void ExpectDecayRates(absl::Span<const float> rates, int l) {
    const int64_t heads = Size("num_attention_heads");
    const Indices mine = Mine(heads);
    ASSERT_EQ(rates.size(), mine.size());
    const double n = static_cast<double>(Size("num_hidden_layers"));
    for (size_t i = 0; i < mine.size(); ++i) {
      const double slope = std::pow(2.0, -8.0 * (mine[i] + 1.0) / heads);
      EXPECT_NEAR(rates[i], slope * (1 - l / (n - 1) + 1e-5), slope * 1e-6);
    }
  }

  const TinyCheckpoint& tiny_;
  const nlohmann::json& config_;
  const ShardSpec& spec_;
};

// Sizes of which no slice starts on a multiple of 128 at tp 8, with 4 KV heads
// and 4 norm groups. Two layers: linear and dense, softmax and experts.
nlohmann::json UnevenConfigJson() {
  nlohmann::json config = TinyConfigJson();
  config["num_hidden_layers"] = 2;
  config["layer_group_size"] = 2;
  config["hidden_size"] = 200;
  config["num_attention_heads"] = 8;
  config["num_key_value_heads"] = 4;
  config["group_norm_size"] = 4;
  config["head_dim"] = 40;
  config["intermediate_size"] = 320;
  config["moe_intermediate_size"] = 136;
  config["num_experts"] = 8;
  return config;
}

ModelConfig Parse(const nlohmann::json& json) {
  const auto file = ParseModelConfig(json);
  EXPECT_TRUE(file.ok()) << file.status();
  return file->config;
}

// Loads all ranks of a world and compares each with the oracle.
void ExpectWorldIsRight(const TinyCheckpoint& tiny, const nlohmann::json& json,
                        int tp, int dp, bool slice_experts = false) {
  SCOPED_TRACE("tp " + std::to_string(tp) + " dp " + std::to_string(dp));
  const auto file = ReadModelConfig(tiny.dir());
  ASSERT_TRUE(file.ok()) << file.status();
  const auto checkpoint = Checkpoint::Open(tiny.dir());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const ShardSpec& spec :
       SpecsOfWorld(file->config, tp, dp, slice_experts)) {
    const auto shard =
        WeightShard::Load(file->config, *checkpoint, spec, /*threads=*/3);
    ASSERT_TRUE(shard.ok()) << shard.status();
    ShardOracle(tiny, json, spec).ExpectRight(shard->weights());
    // The way to a device, whose memory the test can read.
    const auto backend = MakeCpuBackend(1);
    const auto sent = WeightShard::LoadOn(file->config, *checkpoint, spec,
                                          /*threads=*/3, backend.get());
    ASSERT_TRUE(sent.ok()) << sent.status();
    ShardOracle(tiny, json, spec).ExpectRight(sent->weights());
  }
}

TEST(WeightShardTest, LoadsTheRightSlicesOnEveryMesh) {
  const TinyCheckpoint tiny(TinyConfigJson());
  for (const auto& [tp, dp] : std::vector<std::pair<int, int>>{
           {1, 1}, {1, 2}, {2, 1}, {2, 2}, {4, 1}, {4, 2}}) {
    ExpectWorldIsRight(tiny, TinyConfigJson(), tp, dp);
  }
}

TEST(WeightShardTest, LoadsUnevenSlicesInEveryFormat) {
  const nlohmann::json json = UnevenConfigJson();
  for (const TinyCheckpointOptions& options :
       std::vector<TinyCheckpointOptions>{{.matrix_dtype = "BF16"},
                                          {.matrix_dtype = "F32", .shards = 1},
                                          {.block_fp8 = true, .shards = 3}}) {
    const TinyCheckpoint tiny(json, options);
    for (int tp : {1, 8}) ExpectWorldIsRight(tiny, json, tp, 1);
  }
}

TEST(WeightShardTest, LoadsSlicedExperts) {
  const TinyCheckpoint tiny(UnevenConfigJson(), {.block_fp8 = true});
  ExpectWorldIsRight(tiny, UnevenConfigJson(), 4, 1, /*slice_experts=*/true);
}

TEST(WeightShardTest, TiesTheHeadToTheEmbedding) {
  nlohmann::json json = TinyConfigJson();
  json["tie_word_embeddings"] = true;
  const TinyCheckpoint tiny(json);
  const ModelConfig config = Parse(json);
  const auto checkpoint = Checkpoint::Open(tiny.dir());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto shard =
      WeightShard::Load(config, *checkpoint, SpecsOfWorld(config, 2, 1)[1], 1);
  ASSERT_TRUE(shard.ok()) << shard.status();
  EXPECT_EQ(shard->weights().lm_head.data,
            shard->weights().word_embeddings.data);
}

TEST(WeightShardTest, PutsEveryMatrixOnACacheLine) {
  const TinyCheckpoint tiny(TinyConfigJson());
  const ModelConfig config = Parse(TinyConfigJson());
  const auto checkpoint = Checkpoint::Open(tiny.dir());
  const auto shard =
      WeightShard::Load(config, *checkpoint, SpecsOfWorld(config, 4, 1)[1], 1);
  ASSERT_TRUE(shard.ok()) << shard.status();
  for (const LayerWeights& layer : shard->weights().layers) {
    for (const GatedMlpWeights& expert : layer.moe.experts) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(expert.gate.data) % 64, 0u);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(expert.down.data) % 64, 0u);
    }
    EXPECT_EQ(reinterpret_cast<uintptr_t>(layer.attention.dense.data) % 64, 0u);
  }
}

// Kernels reach an expert by its number and a stride.
TEST(WeightShardTest, PutsExpertsAtEqualDistances) {
  const TinyCheckpoint tiny(UnevenConfigJson(), {.block_fp8 = true});
  const auto file = ReadModelConfig(tiny.dir());
  ASSERT_TRUE(file.ok()) << file.status();
  const auto checkpoint = Checkpoint::Open(tiny.dir());
  for (const ShardSpec& spec : SpecsOfWorld(file->config, 1, 2)) {
    const auto shard = WeightShard::Load(file->config, *checkpoint, spec, 1);
    ASSERT_TRUE(shard.ok()) << shard.status();
    int compared = 0;
    for (const LayerWeights& layer : shard->weights().layers) {
      const auto& experts = layer.moe.experts;
      for (auto matrix : {&GatedMlpWeights::gate, &GatedMlpWeights::up,
                          &GatedMlpWeights::down}) {
        for (size_t e = 2; e < experts.size(); ++e) {
          const auto distance = [&](auto member) {
            const auto at = [&](size_t i) {
              return reinterpret_cast<intptr_t>((experts[i].*matrix).*member);
            };
            EXPECT_EQ(at(e) - at(e - 1), at(1) - at(0)) << "expert " << e;
            ++compared;
          };
          distance(&WeightMatrix::data);
          distance(&WeightMatrix::scales);
          distance(&WeightMatrix::row_scale);
        }
      }
    }
    EXPECT_GT(compared, 0);
  }
}

TEST(WeightShardTest, TicksForTheWatchdog) {
  const nlohmann::json json = UnevenConfigJson();
  const TinyCheckpoint tiny(json);
  const ModelConfig config = Parse(json);
  const auto checkpoint = Checkpoint::Open(tiny.dir());
  Progress progress;
  // At tp 2 columns are sliced, and each such matrix is a read of its own.
  const auto shard =
      WeightShard::Load(config, *checkpoint, SpecsOfWorld(config, 2, 1)[0],
                        /*threads=*/2, &progress);
  ASSERT_TRUE(shard.ok()) << shard.status();
  EXPECT_GE(progress.ticks, config.num_hidden_layers);
}

// Quantising needs whole blocks, so that slices get the scales of the whole.
TEST(WeightShardTest, QuantisesSlicesLikeTheWhole) {
  const nlohmann::json json = UnevenConfigJson();
  const TinyCheckpoint tiny(json);
  const ModelConfig config = Parse(json);
  const auto checkpoint = Checkpoint::Open(tiny.dir());
  const auto backend = MakeCpuBackend(1);
  const auto load = [&](int tp, int rank) {
    ShardSpec spec = SpecsOfWorld(config, tp, 1)[rank];
    spec.format = WeightFormat::kBlockFp8;
    // Half of the ranks as on a device.
    auto shard = rank % 2 == 0 ? WeightShard::Load(config, *checkpoint, spec, 2)
                               : WeightShard::LoadOn(config, *checkpoint, spec,
                                                     2, backend.get());
    EXPECT_TRUE(shard.ok()) << shard.status();
    return *std::move(shard);
  };
  const WeightShard whole = load(1, 0);
  const WeightMatrix& all = whole.weights().layers[0].attention.dense;
  const TinyCheckpoint::Tensor& stored =
      tiny.tensors().at("model.layers.0.attention.dense.weight");
  ASSERT_EQ(all.dtype, DType::kFloat8E4M3);
  EXPECT_EQ(whole.weights().word_embeddings.dtype, DType::kBFloat16);
  EXPECT_EQ(whole.weights().layers[1].moe.router.dtype, DType::kFloat32);
  for (int64_t i = 0; i < all.rows; ++i) {
    for (int64_t j = 0; j < all.cols; ++j) {
      const double value = stored.values[i * all.cols + j];
      const double scale = all.scales[i / 128 * all.scale_cols + j / 128];
      // Half a step of e4m3: 2^-4 of the value, or 2^-10 of the scale.
      ASSERT_NEAR(Decode(all, i, j), value,
                  std::max(std::fabs(value) / 16, scale / 1024));
    }
  }
  // The largest value of the first block defines its scale.
  double amax = 0;
  for (int64_t i = 0; i < 128; ++i) {
    for (int64_t j = 0; j < 128; ++j) {
      amax = std::max(amax, std::fabs(stored.values[i * all.cols + j]));
    }
  }
  EXPECT_FLOAT_EQ(all.scales[0], static_cast<float>(amax / 448));

  for (int rank = 0; rank < 8; ++rank) {
    const WeightShard slice = load(8, rank);
    const LayerWeights& part = slice.weights().layers[0];
    for (int64_t i = 0; i < all.rows; ++i) {
      for (int64_t j = 0; j < 40; ++j) {
        ASSERT_EQ(Decode(part.attention.dense, i, j),
                  Decode(all, i, rank * 40 + j));
      }
    }
    for (int64_t third = 0; third < 3; ++third) {
      for (int64_t i = 0; i < 40; ++i) {
        ASSERT_EQ(Decode(part.attention.query_key_value, third * 40 + i, 7),
                  Decode(whole.weights().layers[0].attention.query_key_value,
                         third * 320 + rank * 40 + i, 7));
      }
    }
  }
}

// Head dim 40 of 8 heads: query, key and value begin at 0, 320 and 640, which
// 64 divides, or, for each of two ranks, at multiples of 160.
TEST(WeightShardTest, KnowsHowManyRowsShareAScaleRow) {
  const TinyCheckpoint tiny(UnevenConfigJson(), {.block_fp8 = true});
  const auto file = ReadModelConfig(tiny.dir());
  ASSERT_TRUE(file.ok()) << file.status();
  const auto checkpoint = Checkpoint::Open(tiny.dir());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const auto& [tp, run] : {std::pair<int, int64_t>{1, 64}, {2, 32}}) {
    const auto shard = WeightShard::Load(
        file->config, *checkpoint, SpecsOfWorld(file->config, tp, 1)[tp - 1],
        /*threads=*/1);
    ASSERT_TRUE(shard.ok()) << shard.status();
    const AttentionWeights& attention = shard->weights().layers[0].attention;
    EXPECT_EQ(attention.query_key_value.scale_row_run, run) << tp;
  }
}

int64_t ReadChars() {
  std::ifstream io("/proc/self/io");
  std::string key;
  int64_t value = 0;
  while (io >> key >> value) {
    if (key == "rchar:") return value;
  }
  return -1;
}

TEST(WeightShardTest, ReadsOnlyItsOwnBytes) {
  const std::string dir = std::string(RING_TEST_DATA) + "/ring-tiny";
  const auto file = ReadModelConfig(dir);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto checkpoint = Checkpoint::Open(dir);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  if (ReadChars() < 0) GTEST_SKIP() << "/proc/self/io cannot be read";
  for (const auto& [tp, dp, sliced] :
       std::vector<std::tuple<int, int, bool>>{{1, 1, false},
                                               {1, 2, false},
                                               {2, 1, false},
                                               {2, 1, true},
                                               {2, 2, false},
                                               {4, 1, false},
                                               {4, 1, true},
                                               {4, 2, false}}) {
    for (const ShardSpec& spec : SpecsOfWorld(file->config, tp, dp, sliced)) {
      const auto plan =
          LoadPlan::Create(file->config, checkpoint->tensors(), spec);
      ASSERT_TRUE(plan.ok()) << plan.status();
      const int64_t before = ReadChars();
      const auto shard = WeightShard::Load(file->config, *checkpoint, spec, 4);
      const double read = static_cast<double>(ReadChars() - before);
      ASSERT_TRUE(shard.ok()) << shard.status();
      EXPECT_NEAR(read / static_cast<double>(plan->read_bytes()), 1.0, 0.02)
          << "tp " << tp << " dp " << dp << " rank " << spec.tp_rank
          << (sliced ? ", sliced" : "");
    }
  }
}

// Where everything divides, slicing moves bytes between ranks and adds none.
TEST(LoadPlanTest, SlicedExpertsTakeTheBytesOfOwnedOnes) {
  const ModelConfig config = Parse(TinyConfigJson());
  const TensorTable tensors = UnstoredTensors(config);
  for (const int tp : {1, 2, 4}) {
    const auto bytes = [&](bool sliced) {
      std::vector<int64_t> read;
      for (const ShardSpec& spec : SpecsOfWorld(config, tp, 1, sliced)) {
        const auto plan = LoadPlan::Create(config, tensors, spec);
        EXPECT_TRUE(plan.ok()) << plan.status();
        read.push_back(plan->read_bytes());
      }
      return read;
    };
    EXPECT_EQ(bytes(true), bytes(false)) << "tp " << tp;
  }
}

// Counted element by element, against numbers written down by hand.
TEST(LoadPlanTest, HoldsEveryElementAsOftenAsDesigned) {
  const ModelConfig config = Parse(UnevenConfigJson());
  const TensorTable tensors = UnstoredTensors(config);
  std::map<std::string, std::vector<int>> copies;
  for (const ShardSpec& spec : SpecsOfWorld(config, /*tp=*/8, /*dp=*/2)) {
    const auto plan = LoadPlan::Create(config, tensors, spec);
    ASSERT_TRUE(plan.ok()) << plan.status();
    for (const TensorSlice& slice : plan->slices()) {
      const std::vector<int64_t>& shape = slice.tensor->shape;
      const int64_t rows = shape.size() == 2 ? shape[0] : 1;
      auto& count = copies[slice.tensor->name];
      count.resize(static_cast<size_t>(rows * shape.back()));
      for (int64_t i = slice.rows.begin; i < slice.rows.end; ++i) {
        for (int64_t j = slice.cols.begin; j < slice.cols.end; ++j) {
          ++count[i * shape.back() + j];
        }
      }
    }
  }
  EXPECT_EQ(copies.size(), tensors.tensors().size());
  const auto expect = [&](const std::string& name, int times) {
    EXPECT_THAT(copies[name], ::testing::Each(times)) << name;
  };
  for (const char* name : {"model.word_embeddings.weight", "lm_head.weight"}) {
    expect(name, 2);
  }
  for (const char* name : {"query_key_value", "dense", "g_proj", "g_norm"}) {
    expect(std::string("model.layers.0.attention.") + name + ".weight", 2);
  }
  for (const char* name : {"gate_proj", "up_proj", "down_proj"}) {
    expect(std::string("model.layers.0.mlp.") + name + ".weight", 2);
    expect(std::string("model.layers.1.mlp.shared_experts.") + name + ".weight",
           16);
    for (int e = 0; e < 8; ++e) {
      expect("model.layers.1.mlp.experts." + std::to_string(e) + "." + name +
                 ".weight",
             1);
    }
  }
  expect("model.layers.1.input_layernorm.weight", 16);
  expect("model.layers.1.attention.key_layernorm.weight", 16);
  expect("model.layers.1.mlp.gate.weight", 16);
  expect("model.layers.1.mlp.gate.expert_bias", 16);
  expect("model.norm.weight", 16);
  // 4 KV heads on 8 ranks: each twice per group.
  const std::vector<int>& qkv =
      copies["model.layers.1.attention.query_key_value.weight"];
  for (size_t i = 0; i < qkv.size(); ++i) {
    ASSERT_EQ(qkv[i], i < 320 * 200 ? 2 : 4) << "element " << i;
  }
}

TEST(LoadPlanTest, RefusesAMeshThatDoesNotFit) {
  const ModelConfig config = Parse(UnevenConfigJson());
  EXPECT_TRUE(CheckTensorParallel(config, 8).ok());
  const auto message = [](const ModelConfig& c, int tp) {
    return std::string(CheckTensorParallel(c, tp).message());
  };
  EXPECT_THAT(message(config, 3),
              HasSubstr("tp=3 does not divide num_attention_heads=8"));
  EXPECT_THAT(message(config, 0), HasSubstr("tp=0 is not"));
  ModelConfig changed = config;
  changed.num_attention_heads = 24;
  changed.num_key_value_heads = 6;
  EXPECT_THAT(message(changed, 4),
              HasSubstr("neither divides num_key_value_heads=6"));
  changed = config;
  changed.num_attention_heads = 24;
  changed.group_norm_size = 6;
  EXPECT_THAT(message(changed, 4),
              HasSubstr("neither divides group_norm_size=6"));
  changed = config;
  changed.intermediate_size = 322;
  EXPECT_THAT(message(changed, 4),
              HasSubstr("does not divide intermediate_size=322"));
}

TEST(WeightShardTest, SaysWhereAFileEndsTooEarly) {
  const TinyCheckpoint tiny(TinyConfigJson(), {.shards = 1});
  const ModelConfig config = Parse(TinyConfigJson());
  const auto checkpoint = Checkpoint::Open(tiny.dir());
  ASSERT_TRUE(checkpoint.ok());
  const std::string path = tiny.dir() + "/model.safetensors";
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  const auto shard =
      WeightShard::Load(config, *checkpoint, SpecsOfWorld(config, 1, 1)[0], 4);
  EXPECT_TRUE(absl::IsDataLoss(shard.status())) << shard.status();
  EXPECT_THAT(std::string(shard.status().message()),
              HasSubstr("model.safetensors at byte"));
  const auto backend = MakeCpuBackend(1);
  EXPECT_EQ(WeightShard::LoadOn(config, *checkpoint,
                                SpecsOfWorld(config, 1, 1)[0], 4, backend.get())
                .status(),
            shard.status());
}

TEST(WeightMemoryTest, RefusesMoreThanThereIs) {
  const auto memory = WeightMemory::Allocate(int64_t{1} << 60);
  EXPECT_TRUE(absl::IsResourceExhausted(memory.status()));
  EXPECT_THAT(std::string(memory.status().message()),
              HasSubstr("1152921504606846976"));
}

}  // namespace
}  // namespace ring
