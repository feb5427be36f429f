// The GPT-2 byte alphabet: tokenizer.json writes every byte as one printable
// character, so that merges and vocabulary are plain text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace ring {

// The character (UTF-8) that stands for `byte`: itself for printable Latin-1,
// else U+0100 onwards in the order of bytes ("Ġ" for a space).
std::string ByteToAlphabet(uint8_t byte);

// The bytes that a token of the vocabulary stands for; nullopt if one of its
// characters is not in the alphabet. REQUIRES: `token` is valid UTF-8.
std::optional<std::string> AlphabetToBytes(absl::string_view token);

}  // namespace ring
