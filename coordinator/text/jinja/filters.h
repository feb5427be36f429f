// The filters of templates: {{ value | name(arguments) }}.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "coordinator/text/jinja/arguments.h"
#include "coordinator/text/jinja/limits.h"
#include "coordinator/text/jinja/value.h"

namespace ring::jinja {

bool IsFilter(absl::string_view name);

// What Jinja2's filter of this name makes of `input`; tojson as Hugging Face
// defines it. INVALID_ARGUMENT where the filter raises an exception, and for
// arguments that are not supported. REQUIRES: IsFilter(name).
absl::StatusOr<Value> ApplyFilter(absl::string_view name, const Value& input,
                                  const Arguments& arguments, Budget* budget);

}  // namespace ring::jinja
