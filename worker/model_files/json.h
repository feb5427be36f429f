// JSON from files that strangers wrote: parsed with nlohmann/json, with a
// bound on the depth and Status instead of exceptions.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace ring {

using Json = nlohmann::json;

// Nesting that config, index and tokenizer files never come near.
inline constexpr int kMaxJsonDepth = 64;

// Parses a whole document. INVALID_ARGUMENT names `what` and the byte offset
// of a syntax error, or the depth limit; duplicate keys of one object are
// refused, since readers disagree on which one counts.
absl::StatusOr<Json> ParseJson(absl::string_view text, absl::string_view what);

// Reads and parses a file of at most `max_bytes`. NOT_FOUND or
// INVALID_ARGUMENT name the path.
absl::StatusOr<Json> ReadJsonFile(const std::string& path,
                                  int64_t max_bytes = int64_t{256} << 20);

}  // namespace ring
