// The requests in flight.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

namespace ring {

class Request;

// Every live request, found by its number, its client's name for it and the
// group that runs it; and, in order of arrival, those that wait for a group.
// Plain bookkeeping: not thread-safe (Dispatcher guards it).
class RequestTable {
 public:
  struct Entry {
    // Shared with whoever works on one of the request's events right now.
    std::shared_ptr<Request> request;
    int64_t group = 0;  // 0: waits
    // When the group got it.
    std::chrono::steady_clock::time_point assigned_at;
  };

  // False when a live request has this name. The new request waits for a
  // group, last in line.
  bool Insert(uint64_t id, std::string name, std::shared_ptr<Request> request);

  // Null when there is none (any more). Valid until the next change.
  Entry* Find(uint64_t id);
  Entry* FindByName(absl::string_view name);

  // The request that has waited longest, null when none waits.
  Entry* FirstWaiting();
  // Gives the first waiting request to a group.
  void AssignFirst(int64_t group);

  // Takes a request out. False when it was not there.
  bool Erase(uint64_t id);

  // Numbers of all requests of a group (0: the waiting ones), ascending.
  std::vector<uint64_t> OfGroup(int64_t group) const;
  std::vector<uint64_t> All() const;

  int64_t size() const { return static_cast<int64_t>(by_id_.size()); }
  int64_t waiting() const { return static_cast<int64_t>(waiting_.size()); }

 private:
  struct Named {
    Entry entry;
    std::string name;
  };
  absl::flat_hash_map<uint64_t, Named> by_id_;
  absl::flat_hash_map<std::string, uint64_t> by_name_;
  std::deque<uint64_t> waiting_;
};

}  // namespace ring
