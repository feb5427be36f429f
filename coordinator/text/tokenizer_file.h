// What a tokenizer.json asks for, checked against what is supported.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "coordinator/text/added_tokens.h"

namespace ring {

struct TokenizerFile {
  // Token as written in the file (byte alphabet) and its id.
  std::vector<std::pair<std::string, int32_t>> vocab;
  // By rank, as written in the file.
  std::vector<std::pair<std::string, std::string>> merges;
  // A word that is a token as a whole is not merged from bytes.
  bool ignore_merges = false;
  std::vector<std::string> split_patterns;
  std::vector<AddedToken> added_tokens;
};

// Ids are below this, so that a damaged file cannot ask for the memory.
inline constexpr int32_t kMaxTokenIds = 1 << 24;

// Parses the text of a tokenizer.json. INVALID_ARGUMENT names the field that
// is missing, of the wrong type, unknown, or asks for something unsupported.
absl::StatusOr<TokenizerFile> ParseTokenizerFile(absl::string_view text);

// Checks a tokenizer_config.json for settings that change ids or text and are
// not supported: add_bos_token, add_eos_token, add_prefix_space and
// clean_up_tokenization_spaces must be absent, null or false.
absl::Status CheckTokenizerConfig(absl::string_view text);

}  // namespace ring
