#include "worker/model_files/inventory.h"

#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace ring {
namespace {

constexpr size_t kMaxListedProblems = 10;

class TensorList {
 public:
  void Vector(std::string name, int64_t size) {
    list_.push_back({std::move(name), {size}, false});
  }
  void Matrix(std::string name, int64_t rows, int64_t cols) {
    list_.push_back({std::move(name), {rows, cols}, false});
  }
  void Quantizable(std::string name, int64_t rows, int64_t cols) {
    list_.push_back({std::move(name), {rows, cols}, true});
  }
  void GatedMlp(const std::string& prefix, int64_t inner, int64_t hidden) {
    Quantizable(prefix + "gate_proj.weight", inner, hidden);
    Quantizable(prefix + "up_proj.weight", inner, hidden);
    Quantizable(prefix + "down_proj.weight", hidden, inner);
  }
  std::vector<ExpectedTensor> Take() { return std::move(list_); }

 private:
  std::vector<ExpectedTensor> list_;
};

void AddLayer(const ModelConfig& c, int layer, TensorList* list) {
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  const std::string attention = prefix + "attention.";
  list->Vector(prefix + "input_layernorm.weight", c.hidden_size);
  list->Vector(prefix + "post_attention_layernorm.weight", c.hidden_size);
  list->Quantizable(attention + "query_key_value.weight", c.QkvRows(layer),
                    c.hidden_size);
  list->Vector(attention + "query_layernorm.weight", c.head_dim);
  list->Vector(attention + "key_layernorm.weight", c.head_dim);
  list->Quantizable(attention + "dense.weight", c.hidden_size, c.query_size());
  if (!c.IsSoftmaxLayer(layer)) {
    list->Quantizable(attention + "g_proj.weight", c.query_size(),
                      c.hidden_size);
    list->Vector(attention + "g_norm.weight", c.query_size());
  }
  const std::string mlp = prefix + "mlp.";
  if (c.IsDenseLayer(layer)) {
    list->GatedMlp(mlp, c.intermediate_size, c.hidden_size);
    return;
  }
  list->Matrix(mlp + "gate.weight", c.num_experts, c.hidden_size);
  list->Vector(mlp + "gate.expert_bias", c.num_experts);
  for (int expert = 0; expert < c.num_experts; ++expert) {
    list->GatedMlp(absl::StrCat(mlp, "experts.", expert, "."),
                   c.moe_intermediate_size, c.hidden_size);
  }
  list->GatedMlp(mlp + "shared_experts.", c.shared_expert_size(),
                 c.hidden_size);
}

bool IsSkipped(absl::string_view name) {
  return absl::StartsWith(name, "model.mtp") ||
         absl::StrContains(name, "inv_freq") ||
         absl::StrContains(name, "v_head") || absl::StrContains(name, "slope");
}

// model.layers.{l}. with l right after the layers that run.
bool IsNextTokenLayer(const ModelConfig& config, absl::string_view name) {
  constexpr absl::string_view kPrefix = "model.layers.";
  if (!absl::StartsWith(name, kPrefix)) return false;
  const absl::string_view rest = name.substr(kPrefix.size());
  int layer = 0;
  if (!absl::SimpleAtoi(rest.substr(0, rest.find('.')), &layer)) return false;
  return layer >= config.num_hidden_layers &&
         layer < config.num_hidden_layers + config.num_nextn_predict_layers;
}

// Checks one tensor after the other and remembers which names were expected.
class Comparison {
 public:
  Comparison(const ModelConfig& config, const TensorTable& tensors)
      : config_(config), tensors_(tensors) {}

  void CheckExpected(const ExpectedTensor& expected) {
    const TensorInfo* tensor = Find(expected.name, expected.shape);
    if (tensor == nullptr) return;
    ++inventory_.tensors;
    int64_t elements = 1;
    for (int64_t size : expected.shape) elements *= size;
    inventory_.parameters += elements;
    inventory_.bytes += tensor->bytes;
    const bool may_be_fp8 =
        expected.quantizable && config_.quantization == Quantization::kBlockFp8;
    if (may_be_fp8 && tensor->dtype == "F8_E4M3") {
      CheckScale(expected);
    } else if (tensor->dtype != "BF16" && tensor->dtype != "F32") {
      AddProblem(absl::StrCat(expected.name, " has dtype ", tensor->dtype,
                              ", supported: BF16, F32",
                              may_be_fp8 ? ", F8_E4M3" : ""));
    }
  }

  void CheckUnexpected() {
    for (const TensorInfo& tensor : tensors_.tensors()) {
      if (expected_names_.contains(tensor.name)) continue;
      if (IsNextTokenLayer(config_, tensor.name)) {
        ++inventory_.next_token_tensors;
        inventory_.next_token_bytes += tensor.bytes;
      } else if (IsSkipped(tensor.name)) {
        ++inventory_.skipped_tensors;
      } else {
        AddProblem(absl::StrCat(tensor.name, " is not expected"));
      }
    }
  }

  absl::StatusOr<Inventory> Finish() {
    if (problem_count_ == 0) return inventory_;
    const size_t more = problem_count_ - problems_.size();
    return absl::InvalidArgumentError(absl::StrCat(
        "the checkpoint does not fit config.json: ",
        absl::StrJoin(problems_, "; "),
        more == 0 ? "" : absl::StrCat("; and ", more, " more problems")));
  }

 private:
  // The tensor of that name and shape, or null and a problem.
  const TensorInfo* Find(const std::string& name,
                         const std::vector<int64_t>& shape) {
    expected_names_.insert(name);
    const TensorInfo* tensor = tensors_.Find(name);
    if (tensor == nullptr) {
      AddProblem(absl::StrCat(name, " ", ShapeText(shape), " is missing"));
    } else if (tensor->shape != shape) {
      AddProblem(absl::StrCat(name, " has shape ", ShapeText(tensor->shape),
                              ", expected ", ShapeText(shape)));
      tensor = nullptr;
    }
    return tensor;
  }

  void CheckScale(const ExpectedTensor& expected) {
    const std::string name = expected.name + kScaleSuffix;
    const TensorInfo* scale = Find(name, {(expected.shape[0] + 127) / 128,
                                          (expected.shape[1] + 127) / 128});
    if (scale == nullptr) return;
    ++inventory_.scales;
    inventory_.bytes += scale->bytes;
    if (scale->dtype != "F32") {
      AddProblem(
          absl::StrCat(name, " has dtype ", scale->dtype, ", supported: F32"));
    }
  }

  void AddProblem(std::string problem) {
    ++problem_count_;
    if (problems_.size() < kMaxListedProblems) {
      problems_.push_back(std::move(problem));
    }
  }

  const ModelConfig& config_;
  const TensorTable& tensors_;
  Inventory inventory_;
  absl::flat_hash_set<std::string> expected_names_;
  std::vector<std::string> problems_;
  size_t problem_count_ = 0;
};

}  // namespace

std::vector<ExpectedTensor> ExpectedTensors(const ModelConfig& config) {
  TensorList list;
  list.Matrix("model.word_embeddings.weight", config.vocab_size,
              config.hidden_size);
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    AddLayer(config, layer, &list);
  }
  list.Vector("model.norm.weight", config.hidden_size);
  if (!config.tie_word_embeddings) {
    list.Matrix("lm_head.weight", config.vocab_size, config.hidden_size);
  }
  return list.Take();
}

TensorTable UnstoredTensors(const ModelConfig& config) {
  TensorTable table;
  for (ExpectedTensor& expected : ExpectedTensors(config)) {
    TensorInfo tensor;
    const bool router = absl::StrContains(expected.name, ".mlp.gate.");
    tensor.name = std::move(expected.name);
    tensor.dtype = router ? "F32" : "BF16";
    tensor.bytes = router ? 4 : 2;
    for (int64_t size : expected.shape) tensor.bytes *= size;
    tensor.shape = std::move(expected.shape);
    table.Add(std::move(tensor));
  }
  return table;
}

absl::StatusOr<Inventory> CheckInventory(const ModelConfig& config,
                                         const TensorTable& tensors) {
  Comparison comparison(config, tensors);
  for (const ExpectedTensor& expected : ExpectedTensors(config)) {
    comparison.CheckExpected(expected);
  }
  comparison.CheckUnexpected();
  return comparison.Finish();
}

}  // namespace ring
