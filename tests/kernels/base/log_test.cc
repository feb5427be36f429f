#include "kernels/base/log.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ring {
namespace {

TEST(LogTest, WritesOneLineWithFields) {
  testing::internal::CaptureStderr();
  LogInfo("model loaded", "bytes", 12, "path", "a b", "note", "say \"x\"\n");
  const std::string line = testing::internal::GetCapturedStderr();
  EXPECT_THAT(line, testing::HasSubstr(" INFO [-] model loaded bytes=12"));
  EXPECT_THAT(line, testing::HasSubstr(R"( path="a b" note="say \"x\"\n")"));
  EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
}

TEST(LogTest, DropsLinesBelowTheLevel) {
  testing::internal::CaptureStderr();
  LogDebug("nothing");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace ring
