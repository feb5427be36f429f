#include "worker/cache/cache_allocator.h"

#include "kernels/base/check.h"

namespace ring {

CacheAllocator::CacheAllocator(const Capacity& capacity)
    : capacity_(capacity),
      holders_(capacity.num_pages, 0),
      slot_taken_(capacity.num_slots, false) {
  for (int i = capacity.num_slots - 1; i >= 0; --i) free_slots_.push_back(i);
  for (int i = capacity.num_pages - 1; i >= 0; --i) free_pages_.push_back(i);
}

int CacheAllocator::TakeSlot() {
  RING_CHECK(!free_slots_.empty());
  const int slot = free_slots_.back();
  free_slots_.pop_back();
  slot_taken_[slot] = true;
  return slot;
}

void CacheAllocator::ReturnSlot(int slot) {
  RING_CHECK(slot_taken_[slot]) << "slot " << slot;
  slot_taken_[slot] = false;
  free_slots_.push_back(slot);
}

void CacheAllocator::ReservePages(int count) {
  RING_CHECK_LE(count, unreserved_pages());
  reserved_ += count;
}

void CacheAllocator::ReleaseReservation(int count) {
  RING_CHECK_LE(count, reserved_);
  reserved_ -= count;
}

int CacheAllocator::TakePage() {
  RING_CHECK_GT(reserved_, 0);
  RING_CHECK(!free_pages_.empty());
  --reserved_;
  const int page = free_pages_.back();
  free_pages_.pop_back();
  holders_[page] = 1;
  return page;
}

void CacheAllocator::SharePage(int page) {
  RING_CHECK_GT(holders_[page], 0);
  ++holders_[page];
}

void CacheAllocator::ReturnPage(int page) {
  RING_CHECK_GT(holders_[page], 0);
  if (--holders_[page] == 0) free_pages_.push_back(page);
}

}  // namespace ring
