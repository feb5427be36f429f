#include "worker/cache/cache_pool.h"

#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"
#include "kernels/paged_attention/paged_attention.h"
#include "parallel/mesh.h"

namespace ring {
namespace {

int64_t LayerSlotBytes(const ModelConfig& config, const Mesh& mesh) {
  return mesh.heads().size() * config.head_dim * config.head_dim *
         static_cast<int64_t>(sizeof(float));
}

// Of keys or values.
int64_t LayerPageBytes(const ModelConfig& config, const Mesh& mesh,
                       DType dtype) {
  return mesh.kv_heads().size() * kPageTokens * config.head_dim *
         static_cast<int64_t>(SizeOf(dtype));
}

int SoftmaxLayers(const ModelConfig& config) {
  int layers = 0;
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (config.IsSoftmaxLayer(layer)) ++layers;
  }
  return layers;
}

}  // namespace

int64_t CachePool::PageBytes(const ModelConfig& config, const Mesh& mesh,
                             DType kv_dtype) {
  return 2 * LayerPageBytes(config, mesh, kv_dtype) * SoftmaxLayers(config);
}

int64_t CachePool::SlotBytes(const ModelConfig& config, const Mesh& mesh) {
  return LayerSlotBytes(config, mesh) *
         (config.num_hidden_layers - SoftmaxLayers(config));
}

absl::StatusOr<std::unique_ptr<CachePool>> CachePool::Create(
    const ModelConfig& config, const Mesh& mesh, const Options& options,
    Backend* backend) {
  std::unique_ptr<CachePool> pool(new CachePool(options, backend));
  pool->slot_bytes_ = LayerSlotBytes(config, mesh);
  pool->page_bytes_ = LayerPageBytes(config, mesh, options.kv_dtype);
  pool->layers_.resize(config.num_hidden_layers);
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    LayerMemory& memory = pool->layers_[layer];
    if (config.IsSoftmaxLayer(layer)) {
      const int64_t bytes = options.num_pages * pool->page_bytes_;
      RING_ASSIGN_OR_RETURN(memory.keys, backend->Allocate(bytes));
      RING_ASSIGN_OR_RETURN(memory.values, backend->Allocate(bytes));
    } else {
      RING_ASSIGN_OR_RETURN(
          memory.states,
          backend->Allocate(options.num_slots * pool->slot_bytes_));
    }
  }
  return pool;
}

float* CachePool::States(int layer) const {
  RING_CHECK(layers_[layer].states != nullptr) << "layer " << layer;
  return static_cast<float*>(layers_[layer].states->data());
}

void* CachePool::KeyPages(int layer) const {
  RING_CHECK(layers_[layer].keys != nullptr) << "layer " << layer;
  return layers_[layer].keys->data();
}

void* CachePool::ValuePages(int layer) const {
  RING_CHECK(layers_[layer].values != nullptr) << "layer " << layer;
  return layers_[layer].values->data();
}

void CachePool::CopySlot(int from, int to) {
  for (LayerMemory& memory : layers_) {
    if (memory.states == nullptr) continue;
    char* base = static_cast<char*>(memory.states->data());
    backend_->Copy(base + to * slot_bytes_, base + from * slot_bytes_,
                   slot_bytes_);
  }
}

void CachePool::CopyPage(int from, int to) {
  for (LayerMemory& memory : layers_) {
    if (memory.keys == nullptr) continue;
    for (DeviceBuffer* buffer : {memory.keys.get(), memory.values.get()}) {
      char* base = static_cast<char*>(buffer->data());
      backend_->Copy(base + to * page_bytes_, base + from * page_bytes_,
                     page_bytes_);
    }
  }
}

}  // namespace ring
