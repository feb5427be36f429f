// The header of a safetensors file: 8 bytes of little-endian length, a JSON
// object of that length, then the tensors' bytes, row-major, without gaps.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/base/dtype.h"
#include "worker/model_files/read_only_file.h"

namespace ring {

// Where a tensor lies. `offset` counts from the start of the file.
struct TensorInfo {
  std::string name;
  std::string dtype;  // as in the file: "BF16", "F32", "F8_E4M3", ...
  std::vector<int64_t> shape;
  int file = 0;  // index into Checkpoint::files()
  int64_t offset = 0;
  int64_t bytes = 0;
};

// The storage type of the kernels for a safetensors dtype name; empty for one
// that the kernels have no use for.
std::optional<DType> ToDType(absl::string_view dtype);

// "[1024, 128]"
std::string ShapeText(const std::vector<int64_t>& shape);

inline constexpr int64_t kMaxSafetensorsHeaderBytes = int64_t{100} << 20;

// Reads the header of `file` and nothing else, and checks all of it: lengths
// against the file's size, known dtypes, shape x dtype = bytes for every
// tensor, and that the tensors tile the data without overlap, gap or rest.
// INVALID_ARGUMENT names the file, the tensor and the numbers. The result is
// ordered by offset; `file` fields are 0.
absl::StatusOr<std::vector<TensorInfo>> ReadSafetensorsHeader(
    const ReadOnlyFile& file);

// The raw header, length included: what a digest covers. Checks the lengths.
absl::StatusOr<std::string> ReadRawSafetensorsHeader(const ReadOnlyFile& file);

}  // namespace ring
