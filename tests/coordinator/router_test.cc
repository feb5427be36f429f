#include "coordinator/router.h"

#include <gtest/gtest.h>

#include <optional>

namespace ring {
namespace {

GroupInfo Info(int64_t max_sequences, int64_t kv_tokens, int dp = 1,
               uint64_t key = 0) {
  GroupInfo info;
  info.key = key;
  info.dp = dp;
  info.max_sequences = max_sequences;
  info.kv_tokens = kv_tokens;
  info.context_length = 1 << 20;
  return info;
}

TEST(RouterTest, WithoutGroupsNothingServes) {
  Router router;
  EXPECT_FALSE(router.Serving());
  EXPECT_EQ(router.Pick(1, 1), std::nullopt);
  EXPECT_EQ(router.MaxSequenceTokens(), 0);
}

TEST(RouterTest, PicksTheGroupWithMostFreeTokens) {
  Router router;
  const int64_t small = router.Add(Info(8, 1000));
  const int64_t large = router.Add(Info(8, 2000));
  EXPECT_EQ(router.Pick(100, 100), large);
  router.Assign(large, 1001);  // 1000 against 999
  EXPECT_EQ(router.Pick(100, 100), small);
  router.Assign(small, 2);  // 998 against 999
  EXPECT_EQ(router.Pick(100, 100), large);
  router.Release(large, 1001);
  EXPECT_EQ(router.Pick(100, 100), large);
}

TEST(RouterTest, EqualGroupsTakeTurns) {
  Router router;
  const int64_t first = router.Add(Info(8, 1000));
  const int64_t second = router.Add(Info(8, 1000));
  EXPECT_EQ(router.Pick(10, 10), first);
  router.Assign(first, 10);
  EXPECT_EQ(router.Pick(10, 10), second);
  router.Assign(second, 10);
  EXPECT_EQ(router.Pick(10, 10), first);
}

TEST(RouterTest, SequencesAreBounded) {
  Router router;
  const int64_t group = router.Add(Info(/*max_sequences=*/2, 1000, /*dp=*/2));
  for (int i = 0; i < 4; ++i) {
    ASSERT_EQ(router.Pick(1, 1), group);
    router.Assign(group, 1);
  }
  EXPECT_EQ(router.Pick(1, 1), std::nullopt);
  router.Release(group, 1);
  EXPECT_EQ(router.Pick(1, 1), group);
}

TEST(RouterTest, TokensAreBounded) {
  Router router;
  const int64_t group = router.Add(Info(8, 100, /*dp=*/2));
  // One sequence lives in one data-parallel group.
  EXPECT_EQ(router.MaxSequenceTokens(), 100);
  EXPECT_EQ(router.Pick(101, 101), std::nullopt);
  EXPECT_EQ(router.Pick(100, 100), group);
  router.Assign(group, 99);
  router.Assign(group, 99);
  EXPECT_EQ(router.Pick(3, 3), std::nullopt);
  EXPECT_EQ(router.Pick(2, 2), group);
}

// A group's scheduler promises pages for all that a request may become: what
// the router counts must not hide that a group is full of promises.
TEST(RouterTest, CompletionsCountBeforeTheyAreMade) {
  Router router;
  const int64_t large = router.Add(Info(16, 2000));
  const int64_t small = router.Add(Info(16, 1000));
  EXPECT_EQ(router.Pick(10, 1000), large);
  router.Assign(large, 1000);
  EXPECT_EQ(router.Pick(10, 1000), large);  // as many free: the first one
  router.Assign(large, 1000);
  EXPECT_EQ(router.Pick(10, 1000), small);
  // More than a sequence can hold is promised a whole one.
  EXPECT_EQ(router.Pick(10, 1 << 30), small);
  router.Assign(small, 1 << 30);
  EXPECT_EQ(router.Pick(10, 11), std::nullopt);
  router.Release(small, 1 << 30);
  EXPECT_EQ(router.Pick(10, 1000), small);
}

TEST(RouterTest, WhatFitsTheLargestGroupAloneGoesThere) {
  Router router;
  router.Add(Info(16, 1000));
  const int64_t large = router.Add(Info(16, 2000));
  router.Assign(large, 900);
  router.Assign(large, 500);
  // 600 tokens are free in the large group, 1000 in the small one.
  EXPECT_EQ(router.Pick(1001, 1001), std::nullopt);
  router.Release(large, 500);
  EXPECT_EQ(router.Pick(1001, 1001), large);
}

TEST(RouterTest, ContextBoundsASequence) {
  Router router;
  GroupInfo info = Info(8, 1000);
  info.context_length = 64;
  router.Add(info);
  EXPECT_EQ(router.MaxSequenceTokens(), 64);
  EXPECT_EQ(router.Pick(65, 65), std::nullopt);
}

TEST(RouterTest, DrainingGroupTakesNothing) {
  Router router;
  const int64_t group = router.Add(Info(8, 1000));
  router.Find(group)->draining = true;
  EXPECT_FALSE(router.Serving());
  EXPECT_EQ(router.Pick(1, 1), std::nullopt);
  EXPECT_EQ(router.MaxSequenceTokens(), 0);
}

TEST(RouterTest, LateNewsOfALostGroupIsIgnored) {
  Router router;
  const int64_t group = router.Add(Info(8, 1000, 1, /*key=*/5));
  EXPECT_EQ(router.FindByKey(5), group);
  router.Remove(group);
  router.Assign(group, 3);
  router.Release(group, 3);
  EXPECT_EQ(router.FindByKey(5), std::nullopt);
  EXPECT_EQ(router.Find(group), nullptr);
  EXPECT_NE(router.Add(Info(8, 1000)), group);  // ids are never used again
}

TEST(RouterTest, CompletionsNeedASequenceEach) {
  Router router;
  const int64_t group = router.Add(Info(/*max_sequences=*/4, 1000, /*dp=*/2));
  EXPECT_EQ(router.MaxSequences(), 4);
  EXPECT_EQ(router.Pick(1, 1, 5), std::nullopt);  // of one dp group
  router.Assign(group, 100, 4);
  router.Assign(group, 100, 2);
  EXPECT_EQ(router.Find(group)->assigned_requests, 2);
  EXPECT_EQ(router.Pick(1, 1, 3), std::nullopt);
  EXPECT_EQ(router.Pick(1, 1, 2), group);
  router.Release(group, 100, 4);
  EXPECT_EQ(router.Pick(1, 1, 4), group);
  router.Release(group, 100, 2);
  EXPECT_EQ(router.Find(group)->assigned_tokens, 0);
}

// Together they may be longer than one sequence.
TEST(RouterTest, CompletionsArePromisedWhatTheyGrowTo) {
  Router router;
  GroupInfo info = Info(8, 1000);
  info.context_length = 100;
  const int64_t group = router.Add(info);
  router.Assign(group, 500, 3);
  EXPECT_EQ(router.Find(group)->assigned_tokens, 300);
  router.Assign(group, 5000, 1);
  EXPECT_EQ(router.Find(group)->assigned_tokens, 400);
}

}  // namespace
}  // namespace ring
