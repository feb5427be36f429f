// UTF-8 as the Unicode Standard defines it: no surrogates, no overlong forms,
// nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace ring {

inline constexpr absl::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// Length in bytes of the longest valid prefix; text.size() when all is valid.
size_t ValidUtf8Prefix(absl::string_view text);

// Decodes the character that starts at text[*pos] and moves *pos behind it.
// REQUIRES: `text` is valid UTF-8 and *pos is the start of a character in it.
uint32_t NextCodePoint(absl::string_view text, size_t* pos);

// Appends the UTF-8 form of `code_point`. REQUIRES: a Unicode scalar value.
void AppendCodePoint(uint32_t code_point, std::string* out);

// Number of characters. REQUIRES: `text` is valid UTF-8.
size_t CountCodePoints(absl::string_view text);

// Whitespace as Python's str.isspace() has it: the White_Space property and
// the four separators U+001C..U+001F.
bool IsSpace(uint32_t code_point);

// Turns bytes that arrive in pieces into valid UTF-8. Each maximal part of an
// ill-formed sequence becomes one U+FFFD (Unicode Standard, section 3.9,
// "substitution of maximal subparts"), wherever the pieces are cut. Confined
// to one thread at a time.
class Utf8Repairer {
 public:
  // Appends to *out all characters that `bytes` complete, and keeps the bytes
  // of an unfinished last one.
  void Append(absl::string_view bytes, std::string* out);

  // Appends U+FFFD to *out if a character was left unfinished.
  void Finish(std::string* out);

 private:
  std::string pending_;  // start of a character, at most 3 bytes
};

}  // namespace ring
