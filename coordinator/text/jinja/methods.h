// Methods of Python's str, list and dict.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "coordinator/text/jinja/arguments.h"
#include "coordinator/text/jinja/limits.h"
#include "coordinator/text/jinja/value.h"

namespace ring::jinja {

// True if the Python type of `object` has a method of this name, supported or
// not: in a dict, it hides an item of that name.
bool HasMethod(const Value& object, absl::string_view name);

// True if some type has this method and CallMethod supports it.
bool IsSupportedMethod(absl::string_view name);

// self.name(arguments). INVALID_ARGUMENT where Python raises an exception, and
// for methods that are not supported: those that change the object, and upper
// and lower case of text beyond ASCII.
absl::StatusOr<Value> CallMethod(const Value& self, absl::string_view name,
                                 const Arguments& arguments, Budget* budget);

}  // namespace ring::jinja
