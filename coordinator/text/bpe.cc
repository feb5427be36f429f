#include "coordinator/text/bpe.h"

#include <algorithm>
#include <functional>

#include "kernels/base/check.h"

namespace ring {
namespace {

uint64_t PairKey(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 |
         static_cast<uint32_t>(right);
}

}  // namespace

Bpe::Bpe(const std::array<int32_t, 256>& byte_ids,
         absl::Span<const Merge> merges)
    : byte_ids_(byte_ids) {
  rank_of_pair_.reserve(merges.size());
  result_of_rank_.reserve(merges.size());
  for (const Merge& merge : merges) {
    rank_of_pair_[PairKey(merge.left, merge.right)] =
        static_cast<uint32_t>(result_of_rank_.size());
    result_of_rank_.push_back(merge.result);
  }
}

void Bpe::Encode(absl::string_view word, Scratch* scratch,
                 std::vector<int32_t>* ids) const {
  RING_CHECK_LT(word.size(), size_t{kNone});
  if (word.empty()) return;
  auto& symbols = scratch->symbols;
  auto& possible = scratch->possible;
  const uint32_t count = static_cast<uint32_t>(word.size());
  symbols.resize(count);
  for (uint32_t i = 0; i < count; ++i) {
    symbols[i] = {byte_ids_[static_cast<uint8_t>(word[i])],
                  i == 0 ? kNone : i - 1, i + 1 == count ? kNone : i + 1,
                  kNone};
  }
  possible.clear();
  for (uint32_t i = 0; i + 1 < count; ++i) {
    symbols[i].rank = RankAt(*scratch, i);
    if (symbols[i].rank != kNone) {
      possible.push_back(uint64_t{symbols[i].rank} << 32 | i);
    }
  }
  std::make_heap(possible.begin(), possible.end(), std::greater<>());

  while (!possible.empty()) {
    std::pop_heap(possible.begin(), possible.end(), std::greater<>());
    const uint32_t rank = static_cast<uint32_t>(possible.back() >> 32);
    const uint32_t index = static_cast<uint32_t>(possible.back());
    possible.pop_back();
    // An entry is stale once its symbol or the one after it has changed.
    Scratch::Symbol& symbol = symbols[index];
    if (symbol.rank != rank) continue;
    Scratch::Symbol& absorbed = symbols[symbol.next];
    symbol.id = result_of_rank_[rank];
    symbol.next = absorbed.next;
    absorbed.rank = kNone;
    if (symbol.next != kNone) symbols[symbol.next].previous = index;
    Offer(scratch, index);
    if (symbol.previous != kNone) Offer(scratch, symbol.previous);
  }
  for (uint32_t i = 0; i != kNone; i = symbols[i].next) {
    ids->push_back(symbols[i].id);
  }
}

uint32_t Bpe::RankAt(const Scratch& scratch, uint32_t index) const {
  const Scratch::Symbol& symbol = scratch.symbols[index];
  if (symbol.next == kNone) return kNone;
  const auto found =
      rank_of_pair_.find(PairKey(symbol.id, scratch.symbols[symbol.next].id));
  return found == rank_of_pair_.end() ? kNone : found->second;
}

void Bpe::Offer(Scratch* scratch, uint32_t index) const {
  const uint32_t rank = RankAt(*scratch, index);
  scratch->symbols[index].rank = rank;
  if (rank == kNone) return;
  scratch->possible.push_back(uint64_t{rank} << 32 | index);
  std::push_heap(scratch->possible.begin(), scratch->possible.end(),
                 std::greater<>());
}

}  // namespace ring
