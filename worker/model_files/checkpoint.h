// The tensors of a Hugging Face folder, found by name over all its shards.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/model_files/read_only_file.h"
#include "worker/model_files/tensor_table.h"

namespace ring {

// An open checkpoint: model.safetensors.index.json with its shards, or a single
// model.safetensors. Opening reads headers and no tensor data. Immutable and
// thread-safe afterwards; the files stay open as long as it lives.
class Checkpoint {
 public:
  // NOT_FOUND when the folder has neither form, or a shard of the index is
  // missing. INVALID_ARGUMENT when a header is not valid, a tensor lies in
  // two shards, or index and shards do not name the same tensors in the same
  // places; the message has file and tensor.
  static absl::StatusOr<Checkpoint> Open(const std::string& model_dir);

  const TensorTable& tensors() const { return tensors_; }
  // Tensor `t` lies in files()[t.file].
  const std::vector<ReadOnlyFile>& files() const { return files_; }

 private:
  Checkpoint() = default;
  absl::Status AddFile(const std::string& path);

  TensorTable tensors_;
  std::vector<ReadOnlyFile> files_;
};

inline constexpr char kIndexFileName[] = "model.safetensors.index.json";
inline constexpr char kSingleFileName[] = "model.safetensors";

}  // namespace ring
