#include "worker/model/load_plan.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/base/dtype.h"
#include "kernels/base/status_macros.h"
#include "worker/model_files/inventory.h"

namespace ring {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The blocks that [range.begin, range.end) touches.
SliceRange BlocksOf(const SliceRange& range) {
  return {range.begin / kScaleBlock, CeilDiv(range.end, kScaleBlock)};
}

int64_t RowsOf(const TensorInfo& tensor) {
  return tensor.shape.size() == 2 ? tensor.shape[0] : 1;
}
int64_t ColsOf(const TensorInfo& tensor) { return tensor.shape.back(); }

// Walks over the shard's tensors in the order they have in memory. Without
// memory it counts bytes and collects slices; with memory it makes views.
// Both walks take the same steps, so offsets agree.
class ShardWalk {
 public:
  ShardWalk(const ModelConfig& config, const TensorTable& tensors,
            const ShardSpec& spec, std::byte* memory)
      : config_(config), tensors_(tensors), spec_(spec), memory_(memory) {}

  ModelWeights Walk();

  std::vector<TensorSlice>& slices() { return slices_; }
  std::vector<SliceRange>& tables() { return tables_; }
  int64_t bytes() const { return bytes_; }

 private:
  LayerWeights Layer(int layer);
  AttentionWeights Attention(int layer, const std::string& prefix);
  MoeWeights Moe(int layer, const std::string& prefix);
  GatedMlpWeights GatedMlp(const std::string& prefix, SliceRange inner);
  GatedMlpWeights InnerSlice(const GatedMlpWeights& whole, SliceRange inner);

  // One matrix out of row ranges of a stored one, with `cols` of each row.
  WeightMatrix Matrix(const std::string& name,
                      const std::vector<SliceRange>& rows, SliceRange cols,
                      bool quantizable);
  void PlaceScales(const TensorInfo& tensor,
                   const std::vector<SliceRange>& rows, SliceRange cols,
                   absl::Span<TensorSlice> slices, WeightMatrix* matrix);
  absl::Span<const float> Vector(const std::string& name, SliceRange range);
  absl::Span<const float> DecayRates(int layer);

  // The part of rank tp_rank when `size` is cut into tp parts of equal size,
  // or as equal as possible.
  SliceRange Part(int64_t size) const {
    return {spec_.tp_rank * size / spec_.tp,
            (spec_.tp_rank + 1) * size / spec_.tp};
  }
  const TensorInfo& Find(const std::string& name) const {
    const TensorInfo* tensor = tensors_.Find(name);
    RING_CHECK(tensor != nullptr) << name << " is not in the inventory";
    return *tensor;
  }
  int64_t Allocate(int64_t bytes) {
    const int64_t offset = bytes_;
    bytes_ += CeilDiv(bytes, kWeightAlignment) * kWeightAlignment;
    return offset;
  }
  // Memory of `count` elements that are computed.
  template <typename T>
  T* Table(int64_t count) {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    const int64_t offset = Allocate(bytes);
    tables_.push_back({offset, offset + bytes});
    return At<T>(offset);
  }
  template <typename T>
  T* At(int64_t offset) const {
    return memory_ == nullptr ? nullptr
                              : reinterpret_cast<T*>(memory_ + offset);
  }

  const ModelConfig& config_;
  const TensorTable& tensors_;
  const ShardSpec& spec_;
  std::byte* const memory_;
  std::vector<TensorSlice> slices_;
  std::vector<SliceRange> tables_;
  int64_t bytes_ = 0;
};

ModelWeights ShardWalk::Walk() {
  const SliceRange hidden = {0, config_.hidden_size};
  // The vocabulary need not divide: the last ranks have fewer rows, or none.
  const int64_t chunk = CeilDiv(config_.vocab_size, spec_.tp);
  const SliceRange vocab = {
      std::min(spec_.tp_rank * chunk, config_.vocab_size),
      std::min((spec_.tp_rank + 1) * chunk, config_.vocab_size)};
  ModelWeights model;
  model.vocab_begin = vocab.begin;
  model.word_embeddings = Matrix("model.word_embeddings.weight", {vocab},
                                 hidden, /*quantizable=*/false);
  for (int layer = 0; layer < config_.num_hidden_layers; ++layer) {
    model.layers.push_back(Layer(layer));
  }
  model.norm = Vector("model.norm.weight", hidden);
  model.lm_head = config_.tie_word_embeddings
                      ? model.word_embeddings
                      : Matrix("lm_head.weight", {vocab}, hidden,
                               /*quantizable=*/false);
  return model;
}

LayerWeights ShardWalk::Layer(int layer) {
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  const SliceRange hidden = {0, config_.hidden_size};
  LayerWeights weights;
  weights.input_layernorm = Vector(prefix + "input_layernorm.weight", hidden);
  weights.attention = Attention(layer, prefix + "attention.");
  weights.post_attention_layernorm =
      Vector(prefix + "post_attention_layernorm.weight", hidden);
  if (config_.IsDenseLayer(layer)) {
    weights.dense_mlp =
        GatedMlp(prefix + "mlp.", Part(config_.intermediate_size));
  } else {
    weights.moe = Moe(layer, prefix + "mlp.");
  }
  return weights;
}

AttentionWeights ShardWalk::Attention(int layer, const std::string& prefix) {
  const ModelConfig& c = config_;
  const SliceRange hidden = {0, c.hidden_size};
  const SliceRange head = {0, c.head_dim};
  const SliceRange query = Part(c.query_size());
  SliceRange kv = query;
  int64_t kv_size = c.query_size();
  if (c.IsSoftmaxLayer(layer)) {
    kv_size = c.kv_size();
    kv = Part(kv_size);
    if (spec_.tp > c.num_key_value_heads) {
      // tp / K neighbouring ranks hold the same KV head.
      const int kv_head = spec_.tp_rank / (spec_.tp / c.num_key_value_heads);
      kv = {int64_t{kv_head} * c.head_dim, int64_t{kv_head + 1} * c.head_dim};
    }
  }
  const auto after = [](const SliceRange& range, int64_t rows) {
    return SliceRange{range.begin + rows, range.end + rows};
  };
  AttentionWeights weights;
  weights.query_key_value = Matrix(
      prefix + "query_key_value.weight",
      {query, after(kv, c.query_size()), after(kv, c.query_size() + kv_size)},
      hidden, /*quantizable=*/true);
  weights.query_layernorm = Vector(prefix + "query_layernorm.weight", head);
  weights.key_layernorm = Vector(prefix + "key_layernorm.weight", head);
  weights.dense = Matrix(prefix + "dense.weight", {hidden}, query,
                         /*quantizable=*/true);
  if (!c.IsSoftmaxLayer(layer)) {
    weights.g_proj = Matrix(prefix + "g_proj.weight", {query}, hidden,
                            /*quantizable=*/true);
    weights.g_norm = Vector(prefix + "g_norm.weight", query);
    weights.decay_rates = DecayRates(layer);
  }
  return weights;
}

MoeWeights ShardWalk::Moe(int layer, const std::string& prefix) {
  const SliceRange all_experts = {0, config_.num_experts};
  MoeWeights weights;
  weights.router = Matrix(prefix + "gate.weight", {all_experts},
                          {0, config_.hidden_size}, /*quantizable=*/false);
  weights.expert_bias = Vector(prefix + "gate.expert_bias", all_experts);
  const int64_t inner = config_.moe_intermediate_size;
  for (int expert : spec_.experts[layer]) {
    weights.experts.push_back(
        GatedMlp(absl::StrCat(prefix, "experts.", expert, "."),
                 spec_.slice_experts ? Part(inner) : SliceRange{0, inner}));
  }
  const int64_t shared = config_.shared_expert_size();
  weights.shared_expert = GatedMlp(prefix + "shared_experts.", {0, shared});
  weights.shared_expert_slice = InnerSlice(weights.shared_expert, Part(shared));
  return weights;
}

GatedMlpWeights ShardWalk::GatedMlp(const std::string& prefix,
                                    SliceRange inner) {
  const SliceRange hidden = {0, config_.hidden_size};
  GatedMlpWeights weights;
  weights.gate = Matrix(prefix + "gate_proj.weight", {inner}, hidden,
                        /*quantizable=*/true);
  weights.up = Matrix(prefix + "up_proj.weight", {inner}, hidden,
                      /*quantizable=*/true);
  weights.down = Matrix(prefix + "down_proj.weight", {hidden}, inner,
                        /*quantizable=*/true);
  return weights;
}

GatedMlpWeights ShardWalk::InnerSlice(const GatedMlpWeights& whole,
                                      SliceRange inner) {
  if (memory_ == nullptr) return {};
  return {Rows(whole.gate, inner.begin, inner.end),
          Rows(whole.up, inner.begin, inner.end),
          Columns(whole.down, inner.begin, inner.end)};
}

WeightMatrix ShardWalk::Matrix(const std::string& name,
                               const std::vector<SliceRange>& rows,
                               SliceRange cols, bool quantizable) {
  const TensorInfo& tensor = Find(name);
  const DType stored = *ToDType(tensor.dtype);
  const bool quantize = quantizable && stored != DType::kFloat8E4M3 &&
                        spec_.format == WeightFormat::kBlockFp8;
  WeightMatrix matrix;
  matrix.dtype = quantize ? DType::kFloat8E4M3 : stored;
  matrix.cols = cols.size();
  matrix.row_stride = cols.size();
  for (const SliceRange& range : rows) matrix.rows += range.size();
  const int64_t row_bytes =
      matrix.cols * static_cast<int64_t>(SizeOf(matrix.dtype));
  int64_t dest = Allocate(matrix.rows * row_bytes);
  matrix.data = At<std::byte>(dest);

  std::vector<TensorSlice> slices;
  for (const SliceRange& range : rows) {
    slices.push_back(
        {&tensor,
         quantize ? TensorSlice::Fill::kQuantize : TensorSlice::Fill::kCopy,
         range, cols, dest, 0});
    dest += range.size() * row_bytes;
  }
  const size_t first = slices_.size();
  slices_.insert(slices_.end(), slices.begin(), slices.end());
  if (matrix.dtype == DType::kFloat8E4M3) {
    PlaceScales(tensor, rows, cols,
                absl::MakeSpan(slices_).subspan(first, slices.size()), &matrix);
  }
  return matrix;
}

// Each row range brings the scale rows that it touches; ranges that touch the
// same scale row each bring it.
void ShardWalk::PlaceScales(const TensorInfo& tensor,
                            const std::vector<SliceRange>& rows,
                            SliceRange cols, absl::Span<TensorSlice> slices,
                            WeightMatrix* matrix) {
  const SliceRange block_cols = BlocksOf(cols);
  int64_t scale_rows = 0;
  for (const SliceRange& range : rows) scale_rows += BlocksOf(range).size();
  const int64_t scale_row_bytes = block_cols.size() * int64_t{sizeof(float)};
  int64_t scale_dest = Allocate(scale_rows * scale_row_bytes);
  int32_t* row_scale = Table<int32_t>(matrix->rows);
  matrix->scales = At<float>(scale_dest);
  matrix->row_scale = row_scale;
  matrix->scale_cols = block_cols.size();
  matrix->scale_col_offset = cols.begin % kScaleBlock;
  matrix->scale_row_run = kScaleBlock;
  for (const SliceRange& range : rows) {
    matrix->scale_row_run =
        std::gcd(matrix->scale_row_run, std::gcd(range.begin, range.size()));
  }

  int64_t scale_row = 0;
  std::vector<TensorSlice> scales;
  for (size_t i = 0; i < rows.size(); ++i) {
    const SliceRange blocks = BlocksOf(rows[i]);
    if (slices[i].fill == TensorSlice::Fill::kQuantize) {
      slices[i].scale_dest = scale_dest;
    } else {
      scales.push_back({&Find(tensor.name + kScaleSuffix),
                        TensorSlice::Fill::kCopy, blocks, block_cols,
                        scale_dest, 0});
    }
    if (row_scale != nullptr) {
      for (int64_t row = rows[i].begin; row < rows[i].end; ++row) {
        *row_scale++ =
            static_cast<int32_t>(scale_row + row / kScaleBlock - blocks.begin);
      }
    }
    scale_row += blocks.size();
    scale_dest += blocks.size() * scale_row_bytes;
  }
  slices_.insert(slices_.end(), scales.begin(), scales.end());
}

absl::Span<const float> ShardWalk::Vector(const std::string& name,
                                          SliceRange range) {
  const TensorInfo& tensor = Find(name);
  const int64_t dest = Allocate(range.size() * int64_t{sizeof(float)});
  slices_.push_back({&tensor,
                     ToDType(tensor.dtype) == DType::kFloat32
                         ? TensorSlice::Fill::kCopy
                         : TensorSlice::Fill::kWiden,
                     {0, 1},
                     range,
                     dest,
                     0});
  return absl::MakeConstSpan(At<float>(dest),
                             static_cast<size_t>(range.size()));
}

absl::Span<const float> ShardWalk::DecayRates(int layer) {
  const SliceRange heads = Part(config_.num_attention_heads);
  float* rates = Table<float>(heads.size());
  if (rates != nullptr) {
    const std::vector<float> all =
        LayerDecayRates(config_, layer, spec_.decay_mode);
    std::copy(all.begin() + heads.begin, all.begin() + heads.end, rates);
  }
  return absl::MakeConstSpan(rates, static_cast<size_t>(heads.size()));
}

}  // namespace

absl::Status CheckTensorParallel(const ModelConfig& config, int tp) {
  const auto refuse = [tp](absl::string_view problem) {
    return absl::InvalidArgumentError(absl::StrCat("tp=", tp, " ", problem));
  };
  if (tp < 1) return refuse("is not a number of ranks");
  if (config.num_attention_heads % tp != 0) {
    return refuse(absl::StrCat("does not divide num_attention_heads=",
                               config.num_attention_heads));
  }
  if (config.num_key_value_heads % tp != 0 &&
      tp % config.num_key_value_heads != 0) {
    return refuse(absl::StrCat(
        "neither divides num_key_value_heads=", config.num_key_value_heads,
        " nor is divided by it"));
  }
  if (config.group_norm_size % tp != 0 && tp % config.group_norm_size != 0) {
    return refuse(
        absl::StrCat("neither divides group_norm_size=", config.group_norm_size,
                     " nor is divided by it"));
  }
  if (config.first_k_dense_replace > 0 && config.intermediate_size % tp != 0) {
    return refuse(absl::StrCat("does not divide intermediate_size=",
                               config.intermediate_size));
  }
  return absl::OkStatus();
}

SliceSource SourceOf(const TensorSlice& slice) {
  if (slice.fill != TensorSlice::Fill::kQuantize) {
    return {slice.rows, slice.cols};
  }
  const SliceRange rows = BlocksOf(slice.rows);
  const SliceRange cols = BlocksOf(slice.cols);
  return {{rows.begin * kScaleBlock,
           std::min(rows.end * kScaleBlock, RowsOf(*slice.tensor))},
          {cols.begin * kScaleBlock,
           std::min(cols.end * kScaleBlock, ColsOf(*slice.tensor))}};
}

absl::StatusOr<LoadPlan> LoadPlan::Create(const ModelConfig& config,
                                          const TensorTable& tensors,
                                          ShardSpec spec) {
  RING_RETURN_IF_ERROR(CheckTensorParallel(config, spec.tp));
  RING_CHECK(spec.tp_rank >= 0 && spec.tp_rank < spec.tp);
  RING_CHECK_EQ(spec.experts.size(), size_t(config.num_hidden_layers));
  LoadPlan plan(config, tensors, std::move(spec));
  ShardWalk walk(plan.config_, tensors, plan.spec_, /*memory=*/nullptr);
  walk.Walk();
  plan.memory_bytes_ = walk.bytes();
  plan.tables_ = std::move(walk.tables());
  for (const TensorSlice& slice : walk.slices()) {
    const SliceSource source = SourceOf(slice);
    const int64_t bytes =
        source.rows.size() * source.cols.size() *
        static_cast<int64_t>(SizeOf(*ToDType(slice.tensor->dtype)));
    if (bytes == 0) continue;
    plan.read_bytes_ += bytes;
    plan.slices_.push_back(slice);
  }
  return plan;
}

ModelWeights LoadPlan::Bind(std::byte* memory) const {
  RING_CHECK(memory != nullptr);
  return ShardWalk(config_, *tensors_, spec_, memory).Walk();
}

LoadPlan::LoadPlan(const ModelConfig& config, const TensorTable& tensors,
                   ShardSpec spec)
    : config_(config), tensors_(&tensors), spec_(std::move(spec)) {}

}  // namespace ring
