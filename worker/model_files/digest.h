// A fingerprint by which a coordinator and its worker groups know that they
// serve the same model.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ring {

// SHA-256 in lower-case hex: 64 characters.
std::string Sha256Hex(absl::string_view bytes);

// SHA-256 over config.json, tokenizer.json, the index and the safetensors
// headers (names, dtypes, shapes and places of all tensors) of `model_dir`, in
// hex. Tensor data is not read. Files that are not there, as in a folder for
// made-up weights, count as absent; config.json has to exist (NOT_FOUND).
absl::StatusOr<std::string> ModelDigest(const std::string& model_dir);

}  // namespace ring
