// Finds the first stop string in text that arrives in pieces.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace ring {

// Passes text through until a stop string is complete. Text that could still
// be the beginning of a stop string is held back, and no more than that. The
// match that counts is the one that ends first; of those that end at the same
// byte, the longest. It does not depend on how the text is cut into pieces.
// Work per byte is bounded by a constant times the number of stop strings.
// Confined to one thread at a time.
class StopStrings {
 public:
  // REQUIRES: no stop string is empty. With none, all text passes through.
  explicit StopStrings(std::vector<std::string> stops);

  // The text that `delta` lets through. When a stop string is completed, this
  // is the text before it; what follows is dropped, now and in later calls.
  // If deltas and stop strings are whole UTF-8 characters, so are the results.
  std::string Append(absl::string_view delta);

  // The text still held back, now that no more follows. Call once, last.
  std::string Finish();

  // True once a stop string was found.
  bool matched() const { return matched_ >= 0; }
  // Which one: its index in the constructor's list. REQUIRES: matched().
  int matched_index() const { return matched_; }

 private:
  // One stop string and how much of it the text seen so far ends with.
  struct Pattern {
    std::string text;
    // fallback[n]: length of the longest proper prefix of text[0, n) that is
    // also its suffix (Knuth, Morris and Pratt). Size text.size() + 1.
    std::vector<size_t> fallback;
    size_t matched_bytes = 0;
  };

  std::vector<Pattern> patterns_;
  std::string held_;  // not passed on yet: the longest partial match
  int matched_ = -1;
};

}  // namespace ring
