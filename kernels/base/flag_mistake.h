// What a mistake on a command line is called, in every program alike.
#pragma once

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace ring {

// The message of a CLI11 error, given its get_name() and what(). It says which
// key of a --config file, or which file, is wrong, but not whose they are.
inline std::string FlagMistake(absl::string_view error_name,
                               absl::string_view message) {
  const bool about_config =
      error_name == "ConfigError" || error_name == "FileError";
  return absl::StrCat(about_config ? "--config: " : "", message);
}

}  // namespace ring
