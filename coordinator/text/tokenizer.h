// Text to token ids and back: the byte-level BPE of a model's tokenizer.json.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace ring {

// What Encode does with added tokens ("<|role_end|>", "<role>", ...) that are
// spelled out in the text.
enum class AddedTokens {
  kRecognise,  // they become their ids: text that a template has rendered
  kPlainText,  // they are encoded like any other characters: text from a user
               // that must never turn into a control token
  kGuarded,  // what a template has made of guarded text: those of the template
             // become their ids, those of the text do not
};

// Encodes and decodes as the Hugging Face tokenizer of the same file does.
// Immutable after Load, so every method may be called from any thread.
class Tokenizer {
 public:
  // Reads `model_dir`/tokenizer.json, and tokenizer_config.json where it
  // exists. NOT_FOUND: no tokenizer.json. INVALID_ARGUMENT: the file is
  // damaged, or asks for something that is not supported, which is named
  // (a normalizer, another model type, dropout, an unknown pre-tokenizer,
  // single_word tokens, a post-processor that adds tokens, ...).
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(
      const std::string& model_dir);

  // As Load, from the text of a tokenizer.json.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(
      absl::string_view tokenizer_json);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // The token ids of `text`; nothing is added before or after. Takes
  // O(n log n) for any text. INVALID_ARGUMENT names the byte offset where
  // `text` is not UTF-8, or the size if it is larger than 1 GiB.
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                              AddedTokens mode) const;

  // `text` with a guard, the noncharacter U+FDD0, before each character of an
  // added token that it spells out, and before each U+FDD0 of its own. No
  // template takes such text for its tags, and kGuarded finds no token in it.
  // Other text stays as it is. REQUIRES: `text` is valid UTF-8.
  std::string Guard(absl::string_view text) const;

  // The text that Guard was given, also within what a template made of it.
  static std::string Unguard(absl::string_view guarded);

  // The text of `ids`. Tokens may end inside a UTF-8 sequence; what is not
  // UTF-8 after joining all bytes becomes U+FFFD, one for each maximal
  // ill-formed part. Special tokens are left out unless `keep_special`.
  std::string Decode(absl::Span<const int32_t> ids, bool keep_special) const;

  // The bytes that `id` stands for; for an id that no token has (negative,
  // padding, a hole) the UTF-8 bytes of U+FFFD. Valid while this lives.
  absl::string_view TokenBytes(int32_t id) const;

  // One more than the highest token id. Rows of the vocabulary from here on
  // are padding and must never be sampled.
  int32_t num_token_ids() const;

  // True for added tokens that the file marks as special.
  bool IsSpecial(int32_t id) const;

  // The id of an added token by its text, e.g. "</think>"; nullopt if the
  // file has no such added token.
  std::optional<int32_t> AddedTokenId(absl::string_view text) const;

 private:
  struct Parts;
  explicit Tokenizer(std::unique_ptr<const Parts> parts);

  // As AddedTokenMatcher::Split for kGuarded. What `plain` is given is in
  // *unguarded, which is empty before.
  void SplitGuarded(absl::string_view text, std::string* unguarded,
                    absl::FunctionRef<void(absl::string_view)> plain,
                    absl::FunctionRef<void(int32_t)> token) const;

  const std::unique_ptr<const Parts> parts_;
};

}  // namespace ring
