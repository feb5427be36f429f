// Byte-pair encoding of one word: starts from single bytes and applies the
// merge of lowest rank, leftmost first, until none applies.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace ring {

// Immutable, so usable from any thread with a Scratch each.
class Bpe {
 public:
  // Tokens `left` and `right` side by side become `result`.
  struct Merge {
    int32_t left;
    int32_t right;
    int32_t result;
  };

  // Working memory of Encode, kept between words to save allocations: 24 bytes
  // per byte of the longest word.
  class Scratch {
   private:
    friend class Bpe;
    struct Symbol {
      int32_t id;
      uint32_t previous;  // index of the neighbours, or kNone
      uint32_t next;
      uint32_t rank;  // of the merge with `next`, or kNone
    };
    std::vector<Symbol> symbols;     // one per byte of the word
    std::vector<uint64_t> possible;  // min-heap of rank << 32 | symbol index
  };

  // `byte_ids`: the token of each single byte. `merges`: by rank, from 0; of
  // two merges of the same pair the later counts.
  Bpe(const std::array<int32_t, 256>& byte_ids, absl::Span<const Merge> merges);

  // Appends the tokens of `word` to *ids, in O(n log n) for n bytes.
  // REQUIRES: less than 2^32 - 1 bytes.
  void Encode(absl::string_view word, Scratch* scratch,
              std::vector<int32_t>* ids) const;

 private:
  static constexpr uint32_t kNone = UINT32_MAX;

  // Rank of merging symbol `index` with the next one, or kNone.
  uint32_t RankAt(const Scratch& scratch, uint32_t index) const;
  // Sets the symbol's rank anew and queues the merge if there is one.
  void Offer(Scratch* scratch, uint32_t index) const;

  std::array<int32_t, 256> byte_ids_;
  absl::flat_hash_map<uint64_t, uint32_t> rank_of_pair_;  // left << 32 | right
  std::vector<int32_t> result_of_rank_;
};

}  // namespace ring
