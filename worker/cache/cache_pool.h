// This rank's memory of sequences: KV pages of softmax layers and state slots
// of linear layers, allocated once.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/base/dtype.h"
#include "worker/model_files/model_config.h"

namespace ring {

class Mesh;

// Two pools. A KV page holds kPageTokens tokens of every softmax layer; a
// state slot holds the [heads, D, D] fp32 states of every linear layer. Page
// and slot ids come from the plan. Confined to the engine thread.
class CachePool {
 public:
  struct Options {
    int num_slots = 0;
    int num_pages = 0;
    DType kv_dtype = DType::kBFloat16;  // bf16 or fp32
  };

  // Bytes of one page and of one slot, all layers: Create asks the backend for
  // as many as the options have of each.
  static int64_t PageBytes(const ModelConfig& config, const Mesh& mesh,
                           DType kv_dtype);
  static int64_t SlotBytes(const ModelConfig& config, const Mesh& mesh);

  // RESOURCE_EXHAUSTED if the backend has less memory.
  static absl::StatusOr<std::unique_ptr<CachePool>> Create(
      const ModelConfig& config, const Mesh& mesh, const Options& options,
      Backend* backend);

  // Pools of one layer, as the attention ops take them.
  float* States(int layer) const;     // [slots, heads, D, D]
  void* KeyPages(int layer) const;    // [pages, kv heads, kPageTokens, D]
  void* ValuePages(int layer) const;  // [pages, kv heads, kPageTokens, D]
  DType kv_dtype() const { return options_.kv_dtype; }

  // Copies all layers of a slot or page on the backend's current queue.
  void CopySlot(int from, int to);
  void CopyPage(int from, int to);

 private:
  struct LayerMemory {
    std::unique_ptr<DeviceBuffer> states;  // linear layers
    std::unique_ptr<DeviceBuffer> keys;    // softmax layers
    std::unique_ptr<DeviceBuffer> values;
  };

  CachePool(const Options& options, Backend* backend)
      : options_(options), backend_(backend) {}

  const Options options_;
  Backend* const backend_;
  int64_t slot_bytes_ = 0;  // of one layer
  int64_t page_bytes_ = 0;  // of one layer's keys or values
  std::vector<LayerMemory> layers_;
};

}  // namespace ring
