// Tensors by name.
#pragma once

#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "worker/model_files/safetensors.h"

namespace ring {

// Owns the descriptions; immutable once filled.
class TensorTable {
 public:
  // False when the name is there already; the table stays as it was.
  bool Add(TensorInfo tensor) {
    const auto [entry, added] =
        index_.try_emplace(tensor.name, tensors_.size());
    if (added) tensors_.push_back(std::move(tensor));
    return added;
  }

  // Null when there is no such tensor. Valid until the next Add.
  const TensorInfo* Find(absl::string_view name) const {
    const auto entry = index_.find(name);
    return entry == index_.end() ? nullptr : &tensors_[entry->second];
  }

  // In the order they were added.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }

 private:
  std::vector<TensorInfo> tensors_;
  absl::flat_hash_map<std::string, size_t> index_;
};

}  // namespace ring
