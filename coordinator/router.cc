#include "coordinator/router.h"

#include <algorithm>
#include <utility>

namespace ring {

int64_t Router::Group::max_sequence_tokens() const {
  return std::min(info.kv_tokens, info.context_length);
}

int64_t Router::Add(GroupInfo info) {
  const int64_t id = ++last_id_;
  Group& group = groups_[id];
  group.info = std::move(info);
  group.joined_at = std::chrono::steady_clock::now();
  return id;
}

void Router::Remove(int64_t group) { groups_.erase(group); }

std::optional<int64_t> Router::FindByKey(uint64_t key) const {
  for (const auto& [id, group] : groups_) {
    if (group.info.key == key) return id;
  }
  return std::nullopt;
}

Router::Group* Router::Find(int64_t group) {
  const auto it = groups_.find(group);
  return it == groups_.end() ? nullptr : &it->second;
}

bool Router::Serving() const {
  return std::any_of(groups_.begin(), groups_.end(),
                     [](const auto& entry) { return !entry.second.draining; });
}

int64_t Router::MaxSequenceTokens() const {
  int64_t longest = 0;
  for (const auto& [id, group] : groups_) {
    if (group.draining) continue;
    longest = std::max(longest, group.max_sequence_tokens());
  }
  return longest;
}

int64_t Router::MaxSequences() const {
  int64_t most = 0;
  for (const auto& [id, group] : groups_) {
    if (!group.draining) most = std::max(most, group.info.max_sequences);
  }
  return most;
}

std::optional<int64_t> Router::Pick(int64_t least, int64_t tokens,
                                    int sequences) const {
  std::optional<int64_t> best;
  int64_t best_free = 0;
  for (const auto& [id, group] : groups_) {
    if (group.draining) continue;
    // The scheduler keeps them in one data-parallel group.
    if (sequences > group.info.max_sequences) continue;
    if (group.assigned_sequences + sequences > group.capacity_sequences()) {
      continue;
    }
    if (least > group.max_sequence_tokens()) continue;
    if (group.promise(tokens, sequences) > group.free_tokens()) continue;
    if (best.has_value() && group.free_tokens() <= best_free) continue;
    best = id;
    best_free = group.free_tokens();
  }
  return best;
}

void Router::Assign(int64_t group, int64_t tokens, int sequences) {
  Group* const found = Find(group);
  if (found == nullptr) return;
  ++found->assigned_requests;
  found->assigned_sequences += sequences;
  found->assigned_tokens += found->promise(tokens, sequences);
}

void Router::Release(int64_t group, int64_t tokens, int sequences) {
  Group* const found = Find(group);
  if (found == nullptr) return;
  --found->assigned_requests;
  found->assigned_sequences -= sequences;
  found->assigned_tokens -= found->promise(tokens, sequences);
}

}  // namespace ring
