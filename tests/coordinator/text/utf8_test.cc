#include "coordinator/text/utf8.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace ring {
namespace {

constexpr char kFffd[] = "\xEF\xBF\xBD";

std::string Repair(absl::string_view bytes) {
  Utf8Repairer repairer;
  std::string text;
  repairer.Append(bytes, &text);
  repairer.Finish(&text);
  return text;
}

TEST(Utf8Test, FindsTheFirstInvalidByte) {
  EXPECT_EQ(ValidUtf8Prefix(""), 0u);
  EXPECT_EQ(ValidUtf8Prefix("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"), 10u);
  EXPECT_EQ(ValidUtf8Prefix("ab\xC0\xAF"), 2u);          // overlong '/'
  EXPECT_EQ(ValidUtf8Prefix("ab\xE0\x80\xAF"), 2u);      // overlong
  EXPECT_EQ(ValidUtf8Prefix("ab\xF0\x80\x80\xAF"), 2u);  // overlong
  EXPECT_EQ(ValidUtf8Prefix("ab\xED\xA0\x80"), 2u);      // a surrogate
  EXPECT_EQ(ValidUtf8Prefix("ab\xF4\x90\x80\x80"), 2u);  // above U+10FFFF
  EXPECT_EQ(ValidUtf8Prefix("ab\xF5\x80\x80\x80"), 2u);
  EXPECT_EQ(ValidUtf8Prefix("ab\xE2\x82"), 2u);  // cut off
  EXPECT_EQ(ValidUtf8Prefix("ab\x80"), 2u);
}

TEST(Utf8Test, CodePointsGoThereAndBack) {
  for (const uint32_t code_point : {0x0u, 0x7Fu, 0x80u, 0x7FFu, 0x800u, 0xD7FFu,
                                    0xE000u, 0xFFFFu, 0x10000u, 0x10FFFFu}) {
    std::string text;
    AppendCodePoint(code_point, &text);
    EXPECT_EQ(ValidUtf8Prefix(text), text.size());
    EXPECT_EQ(CountCodePoints(text), 1u);
    size_t pos = 0;
    EXPECT_EQ(NextCodePoint(text, &pos), code_point);
    EXPECT_EQ(pos, text.size());
  }
}

// The examples of the Unicode Standard, tables 3-8 to 3-11.
TEST(Utf8RepairerTest, ReplacesMaximalSubparts) {
  const std::string f = kFffd;
  EXPECT_EQ(Repair("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            f + f + f + f + f + f + f + f + "A");
  EXPECT_EQ(Repair("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"),
            f + f + f + f + f + f + f + f + "A");
  EXPECT_EQ(Repair("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            f + f + f + f + f + "A" + f + f + "B");
  EXPECT_EQ(Repair("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"),
            f + f + f + f + "A");
}

TEST(Utf8RepairerTest, DoesNotDependOnTheCuts) {
  const std::string bytes =
      "a\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41\xF0\x9F\x98\x80\xC3\xA9\xED\xA0"
      "\x80z\xE2\x82";
  const std::string whole = Repair(bytes);
  for (size_t first = 0; first <= bytes.size(); ++first) {
    for (size_t second = first; second <= bytes.size(); ++second) {
      Utf8Repairer repairer;
      std::string text;
      repairer.Append(bytes.substr(0, first), &text);
      EXPECT_EQ(ValidUtf8Prefix(text), text.size());
      repairer.Append(bytes.substr(first, second - first), &text);
      repairer.Append(bytes.substr(second), &text);
      repairer.Finish(&text);
      EXPECT_EQ(text, whole) << "cut at " << first << " and " << second;
    }
  }
}

TEST(Utf8RepairerTest, HoldsBackOnlyAnUnfinishedCharacter) {
  Utf8Repairer repairer;
  std::string text;
  repairer.Append("x\xF0\x9F\x98", &text);
  EXPECT_EQ(text, "x");
  repairer.Append("\x80y", &text);
  EXPECT_EQ(text, "x\xF0\x9F\x98\x80y");
  repairer.Append("\xF0\x9F", &text);
  repairer.Append("z", &text);
  EXPECT_EQ(text, std::string("x\xF0\x9F\x98\x80y") + kFffd + "z");
}

}  // namespace
}  // namespace ring
