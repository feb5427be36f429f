// Finds added tokens ("<|role_end|>", "<role>") in text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"

namespace ring {

// One entry of "added_tokens" in tokenizer.json, with its field names.
struct AddedToken {
  int32_t id = 0;
  std::string content;  // not empty
  bool lstrip = false;  // a match takes in the white space before it
  bool rstrip = false;  // a match takes in the white space after it
  bool normalized = false;
  bool special = false;
};

// Cuts text at added tokens: the leftmost match, the longest of those. Tokens
// with `normalized` are looked for after all others, in what these leave over,
// as Hugging Face's tokenizers do also when nothing is normalised. Immutable.
class AddedTokenMatcher {
 public:
  explicit AddedTokenMatcher(const std::vector<AddedToken>& tokens);

  // Calls `plain` with the text between matches (never empty) and `token` with
  // the id of each match, in order. O(size of text times longest token).
  // REQUIRES: `text` is valid UTF-8.
  void Split(absl::string_view text,
             absl::FunctionRef<void(absl::string_view)> plain,
             absl::FunctionRef<void(int32_t)> token) const;

 private:
  // A trie over the bytes of the tokens of one pass.
  struct Trie {
    struct Node {
      absl::flat_hash_map<uint8_t, uint32_t> children;
      int32_t token = -1;  // index in tokens_, or -1
    };
    std::vector<Node> nodes{1};  // nodes[0] is the root

    void Add(absl::string_view content, int32_t token);
    // Index in tokens_ of the longest token that `text` starts with, or -1.
    int32_t Longest(absl::string_view text) const;
  };

  void SplitBy(const Trie& trie, absl::string_view text,
               absl::FunctionRef<void(absl::string_view)> plain,
               absl::FunctionRef<void(int32_t)> token) const;

  const std::vector<AddedToken> tokens_;
  Trie first_;   // normalized: false
  Trie second_;  // normalized: true
};

}  // namespace ring
