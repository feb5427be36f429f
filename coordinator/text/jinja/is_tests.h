// The tests of templates: {% if value is name(arguments) %}.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "coordinator/text/jinja/arguments.h"
#include "coordinator/text/jinja/limits.h"
#include "coordinator/text/jinja/value.h"

namespace ring::jinja {

bool IsTest(absl::string_view name);

// What Jinja2's test of this name says of `value`. INVALID_ARGUMENT where the
// test raises an exception. REQUIRES: IsTest(name).
absl::StatusOr<bool> ApplyTest(absl::string_view name, const Value& value,
                               const Arguments& arguments, Budget* budget);

}  // namespace ring::jinja
