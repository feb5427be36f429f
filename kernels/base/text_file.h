// Whole files as bytes.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace ring {

// NOT_FOUND, or INVALID_ARGUMENT when the file cannot be read or has more than
// `max_bytes`; both name the path.
absl::StatusOr<std::string> ReadTextFile(const std::string& path,
                                         int64_t max_bytes);

}  // namespace ring
