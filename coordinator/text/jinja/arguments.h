// The arguments of a call, filter or test, and how they meet parameters.
#pragma once

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "coordinator/text/jinja/value.h"

namespace ring::jinja {

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

// Arguments in the order of parameters; a parameter that was not given has its
// default.
class BoundArguments {
 public:
  // A parameter without a default must be given.
  struct Parameter {
    Parameter(absl::string_view name) : name(name), required(true) {}
    Parameter(absl::string_view name, Value fallback)
        : name(name), required(false), fallback(std::move(fallback)) {}

    absl::string_view name;
    bool required;
    Value fallback;
  };

  // INVALID_ARGUMENT names `callee` and the argument that is missing, unknown,
  // given twice, or too many.
  static absl::StatusOr<BoundArguments> Bind(
      absl::string_view callee, const Arguments& arguments,
      std::initializer_list<Parameter> parameters);

  const Value& operator[](size_t parameter) const { return values_[parameter]; }

  // INVALID_ARGUMENT unless the parameter is of the type.
  absl::StatusOr<std::string> String(size_t parameter) const;
  absl::StatusOr<int64_t> Int(size_t parameter) const;

 private:
  explicit BoundArguments(absl::string_view callee) : callee_(callee) {}

  std::string callee_;
  std::vector<std::string> names_;
  std::vector<Value> values_;
};

}  // namespace ring::jinja
