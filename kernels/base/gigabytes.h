// Byte counts as reports and messages print them.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/str_format.h"

namespace ring {

// 10^9 bytes each: "14.953 GB".
inline std::string Gigabytes(int64_t bytes) {
  return absl::StrFormat("%.3f GB", static_cast<double>(bytes) * 1e-9);
}

}  // namespace ring
