// Which worker group a request goes to.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

namespace ring {

// What a group said of itself when it joined.
struct GroupInfo {
  uint64_t key = 0;   // the same over all joins of one leader
  int64_t epoch = 0;  // counts them
  std::string host;
  int64_t pid = 0;
  std::string device;
  int dp = 1;
  int tp = 1;
  // Of each of the dp data-parallel groups.
  int64_t max_sequences = 0;
  int64_t kv_tokens = 0;
  int64_t max_batch_tokens = 0;  // rows of a step, for people
  int64_t context_length = 0;
};

// What a group last said of its load. For people: the router counts itself.
struct GroupLoadReport {
  int64_t free_pages = 0;
  int64_t free_slots = 0;
  int64_t free_tokens = 0;
  int64_t queued = 0;
  int64_t running = 0;
};

// The groups, what each can take and what it was promised. A group takes a
// request while it has a free sequence and room for all that the request may
// become, as its scheduler admits; of several, the one with most free tokens
// gets it, so requests shard by free token budget and wait here, where any
// group that comes free can take them. The counts are the coordinator's own,
// exact at any moment, and do not depend on what a group reports.
// Plain bookkeeping: not thread-safe (Dispatcher guards it).
class Router {
 public:
  struct Group {
    GroupInfo info;
    GroupLoadReport reported;
    std::chrono::steady_clock::time_point joined_at;
    bool draining = false;  // takes nothing new
    int64_t assigned_requests = 0;
    int64_t assigned_sequences = 0;  // of them
    int64_t assigned_tokens = 0;     // that the requests may grow to

    int64_t capacity_sequences() const { return info.dp * info.max_sequences; }
    int64_t capacity_tokens() const { return info.dp * info.kv_tokens; }
    int64_t free_tokens() const { return capacity_tokens() - assigned_tokens; }
    // Longest sequence, prompt and completion, that fits at all.
    int64_t max_sequence_tokens() const;
    // What a request whose sequences may grow to `tokens` is promised here.
    int64_t promise(int64_t tokens, int sequences) const {
      return std::min(
          tokens, std::min(info.kv_tokens, sequences * info.context_length));
    }
  };

  // Adds a group; returns its id: 1, 2, ... in order of joining.
  int64_t Add(GroupInfo info);
  void Remove(int64_t group);
  // The group of a leader, if it is here.
  std::optional<int64_t> FindByKey(uint64_t key) const;
  // Null when there is no such group.
  Group* Find(int64_t group);
  const std::map<int64_t, Group>& groups() const { return groups_; }

  // A group that takes new requests exists.
  bool Serving() const;
  // The longest sequence that some serving group can hold; 0: none serves.
  int64_t MaxSequenceTokens() const;
  // The most sequences that one request can have in some serving group.
  int64_t MaxSequences() const;

  // The group that should take a request now for so many completions, each of
  // which needs room for `least` tokens, prompt and completion, and which may
  // all together grow to `tokens`, the prompt counted once; nothing when none
  // has.
  std::optional<int64_t> Pick(int64_t least, int64_t tokens,
                              int sequences = 1) const;

  // Accounts for a request given to a group, and for its end, with the same
  // numbers as in Pick. Unknown groups are ignored: they may have left.
  void Assign(int64_t group, int64_t tokens, int sequences = 1);
  void Release(int64_t group, int64_t tokens, int sequences = 1);

 private:
  std::map<int64_t, Group> groups_;
  int64_t last_id_ = 0;
};

}  // namespace ring
