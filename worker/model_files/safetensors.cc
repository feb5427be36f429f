#include "worker/model_files/safetensors.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status_macros.h"
#include "worker/model_files/json.h"

namespace ring {
namespace {

constexpr int64_t kLengthBytes = 8;
constexpr size_t kMaxDimensions = 8;

struct StoredType {
  const char* name;
  int64_t bytes;
};
constexpr StoredType kStoredTypes[] = {
    {"BF16", 2}, {"F32", 4}, {"F8_E4M3", 1}, {"F16", 2},     {"F64", 8},
    {"I64", 8},  {"I32", 4}, {"I16", 2},     {"I8", 1},      {"U64", 8},
    {"U32", 4},  {"U16", 2}, {"U8", 1},      {"F8_E5M2", 1}, {"BOOL", 1},
};

absl::Status Bad(absl::string_view path, absl::string_view name,
                 absl::string_view problem) {
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": tensor ", name, ": ", problem));
}

// A non-negative integer, or -1.
int64_t Count(const Json& value) {
  return value.is_number_integer() ? std::max<int64_t>(value.get<int64_t>(), -1)
                                   : -1;
}

absl::StatusOr<TensorInfo> ParseEntry(absl::string_view path,
                                      const std::string& name,
                                      const Json& entry, int64_t data_begin,
                                      int64_t data_bytes) {
  if (!entry.is_object() || entry.size() != 3 || !entry.contains("dtype") ||
      !entry.contains("shape") || !entry.contains("data_offsets")) {
    return Bad(path, name, "not an object of dtype, shape and data_offsets");
  }
  TensorInfo tensor;
  tensor.name = name;

  const Json& dtype = entry["dtype"];
  const StoredType* type = nullptr;
  for (const StoredType& known : kStoredTypes) {
    if (dtype == known.name) type = &known;
  }
  if (type == nullptr) {
    return Bad(path, name,
               absl::StrCat(
                   "unknown dtype ",
                   dtype.dump(-1, ' ', false, Json::error_handler_t::replace)));
  }
  tensor.dtype = type->name;

  const Json& shape = entry["shape"];
  if (!shape.is_array() || shape.size() > kMaxDimensions) {
    return Bad(path, name,
               absl::StrCat("shape is not a list of at most ", kMaxDimensions,
                            " sizes"));
  }
  int64_t expected_bytes = type->bytes;
  for (const Json& size : shape) {
    const int64_t count = Count(size);
    if (count < 0) return Bad(path, name, "shape has an entry that is no size");
    if (__builtin_mul_overflow(expected_bytes, count, &expected_bytes)) {
      return Bad(path, name, "shape x dtype is more than 2^63 bytes");
    }
    tensor.shape.push_back(count);
  }

  const Json& offsets = entry["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || Count(offsets[0]) < 0 ||
      Count(offsets[1]) < Count(offsets[0])) {
    return Bad(path, name, "data_offsets is not [begin, end]");
  }
  const int64_t begin = Count(offsets[0]);
  const int64_t end = Count(offsets[1]);
  if (end > data_bytes) {
    return Bad(path, name,
               absl::StrCat("ends at data byte ", end, ", but the file has ",
                            data_bytes, " (truncated?)"));
  }
  if (end - begin != expected_bytes) {
    return Bad(path, name,
               absl::StrCat(tensor.dtype, " ", ShapeText(tensor.shape),
                            " takes ", expected_bytes,
                            " bytes, but data_offsets cover ", end - begin));
  }
  tensor.offset = data_begin + begin;
  tensor.bytes = end - begin;
  return tensor;
}

// Sorts by offset and checks that the tensors cover [data_begin, file_bytes).
absl::Status CheckTiling(absl::string_view path, int64_t data_begin,
                         int64_t file_bytes, std::vector<TensorInfo>* tensors) {
  std::sort(tensors->begin(), tensors->end(),
            [](const TensorInfo& a, const TensorInfo& b) {
              return std::pair(a.offset, a.bytes) <
                     std::pair(b.offset, b.bytes);
            });
  int64_t covered = data_begin;
  absl::string_view before = "the header";
  for (const TensorInfo& tensor : *tensors) {
    if (tensor.offset < covered) {
      return Bad(path, tensor.name,
                 absl::StrCat("overlaps ", before, " by ",
                              covered - tensor.offset, " bytes"));
    }
    if (tensor.offset > covered) {
      return Bad(path, tensor.name,
                 absl::StrCat("leaves a gap of ", tensor.offset - covered,
                              " bytes after ", before));
    }
    covered += tensor.bytes;
    before = tensor.name;
  }
  if (covered != file_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", file_bytes - covered,
                     " bytes at the end belong to no tensor"));
  }
  return absl::OkStatus();
}

}  // namespace

std::optional<DType> ToDType(absl::string_view dtype) {
  if (dtype == "BF16") return DType::kBFloat16;
  if (dtype == "F32") return DType::kFloat32;
  if (dtype == "F8_E4M3") return DType::kFloat8E4M3;
  return std::nullopt;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::StatusOr<std::string> ReadRawSafetensorsHeader(const ReadOnlyFile& file) {
  unsigned char length_bytes[kLengthBytes];
  if (file.bytes() < kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": ", file.bytes(),
                     " bytes are too few for a safetensors file"));
  }
  RING_RETURN_IF_ERROR(
      file.ReadAt(0, absl::MakeSpan(reinterpret_cast<std::byte*>(length_bytes),
                                    kLengthBytes)));
  uint64_t length = 0;
  for (int i = kLengthBytes - 1; i >= 0; --i) {
    length = length << 8 | length_bytes[i];
  }
  const int64_t limit =
      std::min(file.bytes() - kLengthBytes, kMaxSafetensorsHeaderBytes);
  if (length > static_cast<uint64_t>(limit)) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": claims a header of ", length,
                     " bytes; the file and the limit of ",
                     kMaxSafetensorsHeaderBytes, " allow ", limit));
  }
  std::string raw(kLengthBytes + length, '\0');
  RING_RETURN_IF_ERROR(file.ReadAt(
      0, absl::MakeSpan(reinterpret_cast<std::byte*>(raw.data()), raw.size())));
  return raw;
}

absl::StatusOr<std::vector<TensorInfo>> ReadSafetensorsHeader(
    const ReadOnlyFile& file) {
  RING_ASSIGN_OR_RETURN(const std::string raw, ReadRawSafetensorsHeader(file));
  const int64_t data_begin = static_cast<int64_t>(raw.size());
  RING_ASSIGN_OR_RETURN(
      const Json header,
      ParseJson(absl::string_view(raw).substr(kLengthBytes), file.path()));
  if (!header.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": the header is not a JSON object"));
  }
  std::vector<TensorInfo> tensors;
  tensors.reserve(header.size());
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    RING_ASSIGN_OR_RETURN(TensorInfo tensor,
                          ParseEntry(file.path(), name, entry, data_begin,
                                     file.bytes() - data_begin));
    tensors.push_back(std::move(tensor));
  }
  RING_RETURN_IF_ERROR(
      CheckTiling(file.path(), data_begin, file.bytes(), &tensors));
  return tensors;
}

}  // namespace ring
