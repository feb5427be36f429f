#include "worker/cache/cache_allocator.h"

#include "gtest/gtest.h"

namespace ring {
namespace {

TEST(CacheAllocatorTest, HandsOutTheLowestFirstAndTheNewestAgain) {
  CacheAllocator cache({.num_slots = 3, .num_pages = 4});
  EXPECT_EQ(cache.TakeSlot(), 0);
  EXPECT_EQ(cache.TakeSlot(), 1);
  cache.ReturnSlot(0);
  EXPECT_EQ(cache.TakeSlot(), 0);
  EXPECT_EQ(cache.free_slots(), 1);
}

TEST(CacheAllocatorTest, PromisedPagesAreNobodyElses) {
  CacheAllocator cache({.num_slots = 1, .num_pages = 4});
  cache.ReservePages(3);
  EXPECT_EQ(cache.unreserved_pages(), 1);
  EXPECT_EQ(cache.free_pages(), 4);
  EXPECT_EQ(cache.TakePage(), 0);
  EXPECT_EQ(cache.free_pages(), 3);
  EXPECT_EQ(cache.unreserved_pages(), 1);
  cache.ReleaseReservation(2);
  EXPECT_EQ(cache.unreserved_pages(), 3);
}

TEST(CacheAllocatorTest, ASharedPageIsFreeWhenItsLastHolderReturnsIt) {
  CacheAllocator cache({.num_slots = 1, .num_pages = 2});
  cache.ReservePages(2);
  const int page = cache.TakePage();
  cache.SharePage(page);
  cache.SharePage(page);
  // Three holders of one page.
  EXPECT_EQ(cache.free_pages(), 1);
  cache.ReturnPage(page);
  cache.ReturnPage(page);
  EXPECT_EQ(cache.free_pages(), 1);
  EXPECT_NE(cache.TakePage(), page);
  cache.ReturnPage(page);
  EXPECT_EQ(cache.free_pages(), 1);
  cache.ReservePages(1);
  EXPECT_EQ(cache.TakePage(), page);
  // Its new holder is its only one.
  cache.ReturnPage(page);
  EXPECT_EQ(cache.free_pages(), 1);
}

TEST(CacheAllocatorDeathTest, APageThatNobodyHoldsCannotBeSharedOrReturned) {
  CacheAllocator cache({.num_slots = 1, .num_pages = 2});
  EXPECT_DEATH(cache.SharePage(0), "");
  EXPECT_DEATH(cache.ReturnPage(0), "");
  EXPECT_DEATH(cache.ReturnSlot(0), "");
}

}  // namespace
}  // namespace ring
