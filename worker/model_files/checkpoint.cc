#include "worker/model_files/checkpoint.h"

#include <map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "worker/model_files/json.h"

namespace ring {
namespace {

// The family's largest checkpoints have about 200 shards; each keeps one
// descriptor open.
constexpr size_t kMaxShards = 512;

// Tensor name -> shard file name.
using WeightMap = std::map<std::string, std::string>;

absl::StatusOr<WeightMap> ReadIndex(const std::string& path) {
  RING_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path));
  if (!json.is_object() || !json.contains("weight_map") ||
      !json["weight_map"].is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has no object weight_map"));
  }
  WeightMap weight_map;
  for (const auto& [name, shard] : json["weight_map"].items()) {
    // A path out of the folder would let a download read other files.
    if (!shard.is_string() ||
        shard.get_ref<const std::string&>().find('/') != std::string::npos ||
        !absl::EndsWith(shard.get_ref<const std::string&>(), ".safetensors")) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": tensor ", name,
          ": the shard is not the plain name of a .safetensors file"));
    }
    weight_map[name] = shard.get<std::string>();
  }
  return weight_map;
}

}  // namespace

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& model_dir) {
  Checkpoint checkpoint;
  const std::string index_path = absl::StrCat(model_dir, "/", kIndexFileName);
  const auto weight_map = ReadIndex(index_path);
  if (absl::IsNotFound(weight_map.status())) {
    const absl::Status status =
        checkpoint.AddFile(absl::StrCat(model_dir, "/", kSingleFileName));
    if (absl::IsNotFound(status)) {
      return absl::NotFoundError(absl::StrCat(model_dir, " has neither ",
                                              kIndexFileName, " nor ",
                                              kSingleFileName));
    }
    RING_RETURN_IF_ERROR(status);
    return checkpoint;
  }
  RING_RETURN_IF_ERROR(weight_map.status());

  std::map<std::string, int> shards;  // file name -> number of it
  for (const auto& [name, shard] : *weight_map) shards.emplace(shard, 0);
  if (shards.size() > kMaxShards) {
    return absl::InvalidArgumentError(
        absl::StrCat(index_path, ": names ", shards.size(),
                     " shards, more than ", kMaxShards));
  }
  for (auto& [shard, number] : shards) {
    number = static_cast<int>(checkpoint.files_.size());
    const absl::Status status =
        checkpoint.AddFile(absl::StrCat(model_dir, "/", shard));
    if (absl::IsNotFound(status)) {
      return absl::NotFoundError(absl::StrCat(index_path, " names the shard ",
                                              shard, ", which is missing"));
    }
    RING_RETURN_IF_ERROR(status);
  }
  for (const auto& [name, shard] : *weight_map) {
    const TensorInfo* tensor = checkpoint.tensors_.Find(name);
    if (tensor == nullptr || tensor->file != shards[shard]) {
      return absl::InvalidArgumentError(absl::StrCat(
          index_path, ": tensor ", name, " should be in ", shard,
          tensor == nullptr
              ? ", but no shard has it"
              : absl::StrCat(", but is in ",
                             checkpoint.files_[tensor->file].path())));
    }
  }
  for (const TensorInfo& tensor : checkpoint.tensors_.tensors()) {
    if (weight_map->count(tensor.name) == 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          index_path, ": tensor ", tensor.name, " of ",
          checkpoint.files_[tensor.file].path(), " is not in the index"));
    }
  }
  return checkpoint;
}

absl::Status Checkpoint::AddFile(const std::string& path) {
  RING_ASSIGN_OR_RETURN(ReadOnlyFile file, ReadOnlyFile::Open(path));
  RING_ASSIGN_OR_RETURN(std::vector<TensorInfo> tensors,
                        ReadSafetensorsHeader(file));
  for (TensorInfo& tensor : tensors) {
    tensor.file = static_cast<int>(files_.size());
    const std::string name = tensor.name;
    if (!tensors_.Add(std::move(tensor))) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor ", name, " is in two shards: ",
          files_[tensors_.Find(name)->file].path(), " and ", path));
    }
  }
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

}  // namespace ring
