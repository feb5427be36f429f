// The leader's bookkeeping of one data-parallel group's cache: which KV pages
// and state slots are free. Holds no memory of its own.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

namespace ring {

// Pages and slots are handed out lowest id first after a start, then in the
// order they came back. Confined to the engine thread.
class CacheAllocator {
 public:
  struct Capacity {
    int num_slots = 0;  // sequences that can run at once
    int num_pages = 0;  // KV pages, shared by all softmax layers
  };

  explicit CacheAllocator(const Capacity& capacity);

  int free_slots() const { return static_cast<int>(free_slots_.size()); }
  // Pages that are neither held nor promised.
  int unreserved_pages() const { return free_pages() - reserved_; }
  int free_pages() const { return static_cast<int>(free_pages_.size()); }
  const Capacity& capacity() const { return capacity_; }

  // REQUIRES: free_slots() > 0.
  int TakeSlot();
  void ReturnSlot(int slot);

  // Promises `count` pages to a sequence, which TakePage then draws from, so
  // that an admitted sequence never waits for memory.
  // REQUIRES: count <= unreserved_pages().
  void ReservePages(int count);
  void ReleaseReservation(int count);

  // Takes a page out of the promised ones. REQUIRES: a reservation is left.
  int TakePage();

  // One more holder of a page. REQUIRES: the page is held.
  void SharePage(int page);
  // The page is free again when its last holder returns it.
  void ReturnPage(int page);

 private:
  const Capacity capacity_;
  std::vector<int> free_slots_;  // taken from the back
  std::vector<int> free_pages_;  // taken from the back
  std::vector<int> holders_;     // [num_pages]
  std::vector<bool> slot_taken_;
  int reserved_ = 0;
};

}  // namespace ring
