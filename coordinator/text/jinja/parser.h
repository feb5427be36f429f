// Template source to statements.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "coordinator/text/jinja/ast.h"

namespace ring::jinja {

// The functions that templates can call: namespace, range, dict,
// raise_exception, strftime_now.
bool IsFunction(absl::string_view name);

// Parses a template. INVALID_ARGUMENT with the line of a syntax error and of
// everything that is not supported, as far as it shows without running.
absl::StatusOr<Body> Parse(absl::string_view source);

}  // namespace ring::jinja
