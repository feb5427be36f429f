// Template source to tokens, with Jinja's rules for white space around tags.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ring::jinja {

struct Token {
  enum class Kind {
    kText,        // between tags; white space already stripped as asked for
    kPrintBegin,  // {{
    kPrintEnd,    // }}
    kTagBegin,    // {%
    kTagEnd,      // %}
    kName,
    kString,   // text: with escapes resolved
    kInteger,  // text: digits
    kFloat,
    kOperator,  // text: the operator, bracket or punctuation
    kEnd,       // of the template; always the last token
  };
  Kind kind;
  std::string text;
  int line;  // from 1

  // True for a kName or kOperator of this text.
  bool Is(absl::string_view what) const {
    return (kind == Kind::kName || kind == Kind::kOperator) && text == what;
  }
};

// Cuts `source` (UTF-8) as Jinja2 does with trim_blocks and lstrip_blocks,
// which is how Hugging Face runs chat templates. Comments leave no token.
// INVALID_ARGUMENT names the line of what is not Jinja or not supported.
absl::StatusOr<std::vector<Token>> Tokenize(absl::string_view source);

// INVALID_ARGUMENT "line N: what".
absl::Status ErrorAtLine(int line, absl::string_view what);

}  // namespace ring::jinja
