// Token ids to text while they are being generated.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/utf8.h"

namespace ring {

// Decodes a growing sequence of ids. All returned pieces joined equal
// Tokenizer::Decode of all ids, and every piece is whole UTF-8 characters: the
// bytes of a character that a later token may complete are held back (at most
// 3). Confined to one thread at a time.
class TextStream {
 public:
  struct Options {
    // False leaves special tokens out, except those in `keep_ids`.
    bool keep_special = false;
    // Special tokens to keep all the same, e.g. ReasoningTagIds().
    std::vector<int32_t> keep_ids;
  };

  // `tokenizer` must outlive this.
  TextStream(const Tokenizer* tokenizer, Options options);

  // The text that `ids` add.
  std::string Append(absl::Span<const int32_t> ids);

  // The text still held back, now that no more ids follow: U+FFFD for an
  // unfinished character, or nothing. Call once, last.
  std::string Finish();

 private:
  bool Keeps(int32_t id) const;

  const Tokenizer* const tokenizer_;
  const Options options_;
  Utf8Repairer repairer_;
};

}  // namespace ring
