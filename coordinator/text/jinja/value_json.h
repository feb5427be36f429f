// Values from JSON and to JSON.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "coordinator/text/jinja/value.h"

namespace ring::jinja {

// Parses a document; objects keep the order of their keys. INVALID_ARGUMENT
// names `what` and the byte of a syntax error, a repeated key, an integer
// beyond 64 bits, or nesting deeper than kMaxJsonDepth.
absl::StatusOr<Value> ValueFromJson(absl::string_view text,
                                    absl::string_view what);

// As Python's json.dumps, which is what tojson calls in chat templates.
struct JsonStyle {
  // Levels are put on lines of their own, each indented by `indent` spaces;
  // below 0: all on one line.
  int indent = -1;
  bool sort_keys = false;
  bool ensure_ascii = false;
  std::string item_separator = ", ";  // "," if indent >= 0
  std::string key_separator = ": ";
};

// INVALID_ARGUMENT for what JSON has no form for: undefined values, functions,
// namespaces, iterators.
absl::StatusOr<std::string> ToJson(const Value& value, const JsonStyle& style);

}  // namespace ring::jinja
