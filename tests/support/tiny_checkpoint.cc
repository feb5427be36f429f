#include "tests/support/tiny_checkpoint.h"

#include <stdlib.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>
#include <utility>

#include "kernels/base/check.h"

namespace ring {
namespace {

using nlohmann::json;

struct Stored {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

template <typename T>
void Append(std::string* bytes, T value) {
  bytes->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

uint16_t RoundToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The finite non-negative e4m3 numbers by their bits.
const std::vector<double>& E4M3Values() {
  static const auto* values = [] {
    auto* all = new std::vector<double>;
    for (int bits = 0; bits < 127; ++bits) {
      const int exponent = bits >> 3;
      const int mantissa = bits & 7;
      all->push_back(exponent == 0 ? std::ldexp(mantissa, -9)
                                   : std::ldexp(8 + mantissa, exponent - 10));
    }
    return all;
  }();
  return *values;
}

// Nearest e4m3 number, by search.
uint8_t RoundToE4M3(double value) {
  const std::vector<double>& all = E4M3Values();
  const double magnitude = std::fabs(value);
  size_t best =
      std::lower_bound(all.begin(), all.end(), magnitude) - all.begin();
  if (best == all.size()) best = all.size() - 1;
  if (best > 0 && magnitude - all[best - 1] <= all[best] - magnitude) --best;
  return static_cast<uint8_t>(best | (value < 0 ? 0x80 : 0));
}

// Names and shapes of all tensors, in file order.
class Layout {
 public:
  explicit Layout(const json& config) : config_(config) {
    const int64_t hidden = Size("hidden_size");
    Add("model.word_embeddings.weight", {Size("vocab_size"), hidden});
    for (int64_t l = 0; l < Size("num_hidden_layers"); ++l) AddLayer(l);
    Add("model.norm.weight", {hidden});
    if (!config_.value("tie_word_embeddings", false)) {
      Add("lm_head.weight", {Size("vocab_size"), hidden});
    }
  }
  std::vector<Stored> tensors;

 private:
  int64_t Size(const char* name) const {
    return config_.at(name).get<int64_t>();
  }
  void Add(const std::string& name, std::vector<int64_t> shape) {
    tensors.push_back({name, "", std::move(shape), ""});
  }
  void AddMlp(const std::string& prefix, int64_t inner) {
    const int64_t hidden = Size("hidden_size");
    Add(prefix + "gate_proj.weight", {inner, hidden});
    Add(prefix + "up_proj.weight", {inner, hidden});
    Add(prefix + "down_proj.weight", {hidden, inner});
  }
  void AddLayer(int64_t l) {
    const int64_t hidden = Size("hidden_size");
    const int64_t dim = Size("head_dim");
    const int64_t query = Size("num_attention_heads") * dim;
    const int64_t kv = Size("num_key_value_heads") * dim;
    const int64_t group = Size("layer_group_size");
    const int64_t full = Size("num_hidden_layers") / group * group;
    const bool softmax = l % group == group - 1 || l >= full;
    const std::string prefix = "model.layers." + std::to_string(l) + ".";
    Add(prefix + "input_layernorm.weight", {hidden});
    Add(prefix + "post_attention_layernorm.weight", {hidden});
    Add(prefix + "attention.query_key_value.weight",
        {softmax ? query + 2 * kv : 3 * query, hidden});
    Add(prefix + "attention.query_layernorm.weight", {dim});
    Add(prefix + "attention.key_layernorm.weight", {dim});
    Add(prefix + "attention.dense.weight", {hidden, query});
    if (!softmax) {
      Add(prefix + "attention.g_proj.weight", {query, hidden});
      Add(prefix + "attention.g_norm.weight", {query});
    }
    if (l < Size("first_k_dense_replace")) {
      AddMlp(prefix + "mlp.", Size("intermediate_size"));
      return;
    }
    Add(prefix + "mlp.gate.weight", {Size("num_experts"), hidden});
    Add(prefix + "mlp.gate.expert_bias", {Size("num_experts")});
    for (int64_t e = 0; e < Size("num_experts"); ++e) {
      AddMlp(prefix + "mlp.experts." + std::to_string(e) + ".",
             Size("moe_intermediate_size"));
    }
    AddMlp(prefix + "mlp.shared_experts.",
           Size("moe_intermediate_size") * Size("num_shared_experts"));
  }

  const json& config_;
};

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() &&
         text.compare(text.size() - end.size(), end.size(), end) == 0;
}

std::vector<double> RandomValues(const Stored& tensor, uint64_t seed) {
  std::seed_seq sequence(tensor.name.begin(), tensor.name.end());
  std::vector<uint64_t> key(1);
  sequence.generate(key.begin(), key.end());
  std::mt19937_64 random(key[0] * 0x10001 + seed);
  double mean = 0;
  double deviation = 1 / std::sqrt(static_cast<double>(tensor.shape.back()));
  if (EndsWith(tensor.name, "norm.weight")) {
    mean = 1;
    deviation = 0.1;
  } else if (EndsWith(tensor.name, "expert_bias")) {
    deviation = 0.2;
  } else if (EndsWith(tensor.name, "mlp.gate.weight")) {
    deviation = 0.3;
  }
  std::normal_distribution<double> normal(mean, deviation);
  int64_t count = 1;
  for (int64_t size : tensor.shape) count *= size;
  std::vector<double> values(static_cast<size_t>(count));
  for (double& value : values) value = normal(random);
  return values;
}

// Rounds `values` to what the stored bits stand for.
void Store(const std::string& dtype, Stored* tensor,
           std::vector<double>* values) {
  tensor->dtype = dtype;
  for (double& value : *values) {
    const float rounded = static_cast<float>(value);
    if (dtype == "F32") {
      Append(&tensor->bytes, rounded);
      value = rounded;
    } else {
      const uint16_t bits = RoundToBf16(rounded);
      Append(&tensor->bytes, bits);
      value = std::bit_cast<float>(uint32_t{bits} << 16);
    }
  }
}

// Quantises per block and returns the tensor of scales.
Stored StoreFp8(Stored* tensor, std::vector<double>* values) {
  const int64_t rows = tensor->shape[0];
  const int64_t cols = tensor->shape[1];
  const int64_t scale_cols = (cols + 127) / 128;
  Stored scales{
      tensor->name + "_scale_inv", "F32", {(rows + 127) / 128, scale_cols}, ""};
  tensor->dtype = "F8_E4M3";
  tensor->bytes.resize(static_cast<size_t>(rows * cols));
  for (int64_t r = 0; r < rows; r += 128) {
    for (int64_t c = 0; c < cols; c += 128) {
      double amax = 1e-4;
      const auto each = [&](auto&& visit) {
        for (int64_t i = r; i < std::min(r + 128, rows); ++i) {
          for (int64_t j = c; j < std::min(c + 128, cols); ++j) {
            visit(static_cast<size_t>(i * cols + j));
          }
        }
      };
      each([&](size_t i) { amax = std::max(amax, std::fabs((*values)[i])); });
      const float scale = static_cast<float>(amax / 448);
      Append(&scales.bytes, scale);
      each([&](size_t i) {
        const uint8_t bits = RoundToE4M3((*values)[i] / scale);
        tensor->bytes[i] = static_cast<char>(bits);
        const double magnitude = E4M3Values()[bits & 0x7f] * scale;
        (*values)[i] = (bits & 0x80) != 0 ? -magnitude : magnitude;
      });
    }
  }
  return scales;
}

void WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  RING_CHECK(file.good()) << path;
}

void WriteSafetensors(const std::string& path,
                      const std::vector<Stored>& tensors) {
  json header = json::object();
  header["__metadata__"] = {{"format", "pt"}};
  std::string data;
  for (const Stored& tensor : tensors) {
    header[tensor.name] = {
        {"dtype", tensor.dtype},
        {"shape", tensor.shape},
        {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  const std::string text = header.dump();
  std::string bytes;
  Append(&bytes, static_cast<uint64_t>(text.size()));
  WriteFile(path, bytes + text + data);
}

// Cuts the list into runs, so that a layer may straddle two shards.
void WriteShards(const std::string& dir, const std::vector<Stored>& all,
                 int shards) {
  if (shards == 1) {
    WriteSafetensors(dir + "/model.safetensors", all);
    return;
  }
  json index = {{"metadata", {{"total_size", 0}}},
                {"weight_map", json::object()}};
  for (int s = 0; s < shards; ++s) {
    char name[64];
    std::snprintf(name, sizeof(name), "model-%05d-of-%05d.safetensors", s + 1,
                  shards);
    const std::vector<Stored> part(
        all.begin() + static_cast<int64_t>(all.size()) * s / shards,
        all.begin() + static_cast<int64_t>(all.size()) * (s + 1) / shards);
    for (const Stored& tensor : part) index["weight_map"][tensor.name] = name;
    WriteSafetensors(dir + "/" + name, part);
  }
  WriteFile(dir + "/model.safetensors.index.json", index.dump());
}

bool IsQuantized(const std::string& name) {
  return EndsWith(name, "_proj.weight") || EndsWith(name, ".dense.weight") ||
         EndsWith(name, "query_key_value.weight");
}

}  // namespace

json TinyConfigJson() {
  return json{{"architectures", {"BailingMoeLinearV2ForCausalLM"}},
              {"model_type", "bailing_moe_linear"},
              {"hidden_size", 48},
              {"num_hidden_layers", 7},
              {"num_attention_heads", 4},
              {"num_key_value_heads", 2},
              {"head_dim", 16},
              {"layer_group_size", 3},
              {"group_norm_size", 2},
              {"linear_silu", false},
              {"intermediate_size", 80},
              {"first_k_dense_replace", 1},
              {"num_experts", 16},
              {"num_experts_per_tok", 4},
              {"num_shared_experts", 1},
              {"moe_intermediate_size", 24},
              {"n_group", 4},
              {"topk_group", 2},
              {"norm_topk_prob", true},
              {"routed_scaling_factor", 2.5},
              {"score_function", "sigmoid"},
              {"rms_norm_eps", 1e-6},
              {"partial_rotary_factor", 0.5},
              {"rope_theta", 10000.0},
              {"rope_scaling", nullptr},
              {"max_position_embeddings", 4096},
              {"vocab_size", 97},
              {"eos_token_id", 96},
              {"tie_word_embeddings", false},
              {"num_nextn_predict_layers", 0}};
}

TinyCheckpoint::TinyCheckpoint(const json& config,
                               const TinyCheckpointOptions& options) {
  std::string path =
      (std::filesystem::temp_directory_path() / "tiny-XXXXXX").string();
  RING_CHECK(::mkdtemp(path.data()) != nullptr) << path;
  dir_ = path;

  json written = config;
  if (options.block_fp8) {
    written["quantization_config"] = {{"quant_method", "fp8"},
                                      {"fmt", "e4m3"},
                                      {"activation_scheme", "dynamic"},
                                      {"weight_block_size", {128, 128}}};
  }
  WriteFile(dir_ + "/config.json", written.dump(2));

  std::vector<Stored> all;
  for (Stored& tensor : Layout(config).tensors) {
    std::vector<double> values = RandomValues(tensor, options.seed);
    std::vector<Stored> scales;
    if (EndsWith(tensor.name, "expert_bias")) {
      Store("F32", &tensor, &values);
    } else if (EndsWith(tensor.name, "mlp.gate.weight")) {
      Store(options.router_dtype, &tensor, &values);
    } else if (options.block_fp8 && IsQuantized(tensor.name)) {
      scales.push_back(StoreFp8(&tensor, &values));
    } else {
      Store(options.matrix_dtype, &tensor, &values);
    }
    tensors_[tensor.name] = {tensor.shape, std::move(values)};
    all.push_back(std::move(tensor));
    for (Stored& scale : scales) all.push_back(std::move(scale));
  }
  WriteShards(dir_, all, options.shards);
}

TinyCheckpoint::~TinyCheckpoint() {
  std::error_code ignored;
  std::filesystem::remove_all(dir_, ignored);
}

}  // namespace ring
