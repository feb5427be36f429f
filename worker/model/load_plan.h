// Which slices of which stored tensors a rank holds, and where in its memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/model/model_weights.h"
#include "worker/model_files/model_config.h"
#include "worker/model_files/tensor_table.h"

namespace ring {

// In which form the big matrices are held.
enum class WeightFormat {
  kAsStored,  // bf16, fp32 or block FP8, whatever the checkpoint has
  kBlockFp8,  // bf16 and fp32 are quantised while loading
};

// What one rank owns.
struct ShardSpec {
  int tp = 1;       // ranks of a tensor-parallel group
  int tp_rank = 0;  // this one, 0 <= tp_rank < tp
  // [num_hidden_layers]: the experts of this rank, by global number, in the
  // order in which MoeWeights::experts has them. Empty for dense layers.
  std::vector<std::vector<int>> experts;
  // Hold 1 / tp of the inner rows of those experts instead of all.
  bool slice_experts = false;
  DecayMode decay_mode = DecayMode::kIndex;
  WeightFormat format = WeightFormat::kAsStored;
};

// INVALID_ARGUMENT names tp and the count that it does not fit: tp has to
// divide the query heads and intermediate_size, and to divide or be divided by
// the KV heads and the groups of g_norm.
absl::Status CheckTensorParallel(const ModelConfig& config, int tp);

// [begin, end)
struct SliceRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const SliceRange&) const = default;
};

// A rectangle of a stored tensor and what becomes of it. A vector counts as a
// matrix of one row.
struct TensorSlice {
  enum class Fill {
    kCopy,      // the stored bytes, rows packed
    kWiden,     // to fp32, rows packed
    kQuantize,  // to e4m3, rows packed, with a scale per block of 128 x 128
                // of the whole tensor
  };
  const TensorInfo* tensor = nullptr;
  Fill fill = Fill::kCopy;
  SliceRange rows;
  SliceRange cols;
  int64_t dest = 0;        // byte offset in the shard's memory
  int64_t scale_dest = 0;  // kQuantize: fp32 [block rows, block columns]
};

// The elements that have to be read for a slice. Quantising needs whole blocks
// to find their scales; otherwise it is the slice itself.
struct SliceSource {
  SliceRange rows;
  SliceRange cols;
};
SliceSource SourceOf(const TensorSlice& slice);

// A pure function of config, tensors and spec: a rank can make the plan of any
// other rank. Immutable.
class LoadPlan {
 public:
  // REQUIRES: CheckInventory(config, tensors) is OK; `tensors` outlives the
  // plan. INVALID_ARGUMENT as CheckTensorParallel.
  static absl::StatusOr<LoadPlan> Create(const ModelConfig& config,
                                         const TensorTable& tensors,
                                         ShardSpec spec);

  const ShardSpec& spec() const { return spec_; }

  // What has to be filled in, ordered by `dest`.
  const std::vector<TensorSlice>& slices() const { return slices_; }
  // Byte ranges of the shard's memory that Bind writes: tables that are
  // computed rather than read.
  const std::vector<SliceRange>& tables() const { return tables_; }
  // Memory of the shard, and what of it comes out of files.
  int64_t memory_bytes() const { return memory_bytes_; }
  int64_t read_bytes() const { return read_bytes_; }

  // Names the shard's tensors in `memory` of memory_bytes(), aligned to
  // kWeightAlignment, and writes tables() (decay rates, rows of scales).
  ModelWeights Bind(std::byte* memory) const;

 private:
  LoadPlan(const ModelConfig& config, const TensorTable& tensors,
           ShardSpec spec);

  ModelConfig config_;
  const TensorTable* tensors_;
  ShardSpec spec_;
  std::vector<TensorSlice> slices_;
  std::vector<SliceRange> tables_;
  int64_t memory_bytes_ = 0;
  int64_t read_bytes_ = 0;
};

// Every tensor of a shard starts on a cache line.
inline constexpr int64_t kWeightAlignment = 64;

}  // namespace ring
