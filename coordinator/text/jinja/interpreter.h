// Runs parsed templates.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/text/jinja/ast.h"
#include "coordinator/text/jinja/limits.h"
#include "coordinator/text/jinja/value.h"

namespace ring::jinja {

// What strftime_now() sees.
using Clock = std::function<absl::Time()>;

// The text that `body` renders with `variables`. Reads both only, so a
// template may be rendered on several threads at once. INVALID_ARGUMENT with
// the line where rendering failed; what raise_exception() was given is quoted
// in the message. RESOURCE_EXHAUSTED with the line where a limit was met.
absl::StatusOr<std::string> Render(const Body& body, const Dict& variables,
                                   const Clock& clock, const Limits& limits);

}  // namespace ring::jinja
