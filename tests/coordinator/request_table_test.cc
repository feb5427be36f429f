#include "coordinator/request_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ring {
namespace {

using ::testing::ElementsAre;

TEST(RequestTableTest, FindsByNumberAndName) {
  RequestTable table;
  EXPECT_TRUE(table.Insert(7, "seven", nullptr));
  EXPECT_EQ(table.Find(7), table.FindByName("seven"));
  EXPECT_EQ(table.Find(8), nullptr);
  EXPECT_EQ(table.FindByName("eight"), nullptr);
}

TEST(RequestTableTest, ANameIsTakenWhileItLives) {
  RequestTable table;
  EXPECT_TRUE(table.Insert(1, "a", nullptr));
  EXPECT_FALSE(table.Insert(2, "a", nullptr));
  EXPECT_EQ(table.size(), 1);
  EXPECT_TRUE(table.Erase(1));
  EXPECT_FALSE(table.Erase(1));
  EXPECT_TRUE(table.Insert(2, "a", nullptr));
}

TEST(RequestTableTest, WaitsInOrderOfArrival) {
  RequestTable table;
  for (uint64_t id = 1; id <= 4; ++id) {
    table.Insert(id, std::to_string(id), nullptr);
  }
  EXPECT_EQ(table.waiting(), 4);
  table.Erase(2);  // gives up in the queue
  EXPECT_EQ(table.FirstWaiting(), table.Find(1));
  table.AssignFirst(5);
  EXPECT_EQ(table.FirstWaiting(), table.Find(3));
  table.AssignFirst(6);
  EXPECT_EQ(table.waiting(), 1);
  EXPECT_THAT(table.OfGroup(0), ElementsAre(4));
  EXPECT_THAT(table.OfGroup(5), ElementsAre(1));
  EXPECT_THAT(table.All(), ElementsAre(1, 3, 4));
  table.Erase(4);
  EXPECT_EQ(table.FirstWaiting(), nullptr);
}

}  // namespace
}  // namespace ring
