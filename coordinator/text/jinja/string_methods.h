// Methods of Python's str. Text is counted and cut in characters, not bytes.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "coordinator/text/jinja/arguments.h"
#include "coordinator/text/jinja/limits.h"
#include "coordinator/text/jinja/value.h"

namespace ring::jinja {

bool IsSupportedStringMethod(absl::string_view name);

// text.name(arguments). INVALID_ARGUMENT where Python raises an exception, and
// for what is not supported.
absl::StatusOr<Value> CallStringMethod(const std::string& text,
                                       absl::string_view name,
                                       const Arguments& arguments,
                                       Budget* budget);

// The rest is also behind the filters of the same name.
enum class Side { kLeft, kRight, kBoth };
// text.strip(chars); null `chars` is white space.
std::string Strip(absl::string_view text, const std::string* chars, Side side);

// text.replace(from, to, count); count < 0 replaces all.
absl::StatusOr<Value> Replace(const std::string& text, const std::string& from,
                              const std::string& to, int64_t count,
                              Budget* budget);

// str.upper(), lower(), capitalize(), title(). INVALID_ARGUMENT for text that
// is not ASCII, whose rules are not built in.
enum class LetterCase { kUpper, kLower, kCapitalize, kTitle };
absl::StatusOr<Value> ChangeCase(const std::string& text, LetterCase to);

}  // namespace ring::jinja
