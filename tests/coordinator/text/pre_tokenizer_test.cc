#include "coordinator/text/pre_tokenizer.h"

#include <string>
#include <vector>

#include "coordinator/text/utf8.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ring {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<std::string> Split(const std::vector<std::string>& patterns,
                               absl::string_view text) {
  const auto pre_tokenizer = PreTokenizer::Create(patterns);
  EXPECT_TRUE(pre_tokenizer.ok()) << pre_tokenizer.status();
  PreTokenizer::Scratch scratch;
  std::vector<std::string> pieces;
  const absl::Status status =
      (*pre_tokenizer)->Split(text, &scratch, [&](absl::string_view piece) {
        pieces.emplace_back(piece);
      });
  EXPECT_TRUE(status.ok()) << status;
  return pieces;
}

// The pattern of the Ling and Ring 2.0 tokenizers.
constexpr char kFamily[] =
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}|)"
    R"( ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)";

TEST(PreTokenizerTest, CutsAsTheFamilyPatternSays) {
  EXPECT_THAT(Split({kFamily}, ""), IsEmpty());
  EXPECT_THAT(Split({kFamily}, "We'LL  go, 42\n\n  now"),
              ElementsAre("We", "'LL", " ", " go", ",", " ", "4", "2", "\n\n",
                          " ", " now"));
  EXPECT_THAT(Split({kFamily}, "caf\u00e9 \u0663 x\u0301"),
              ElementsAre("caf\u00e9", " ", "\u0663", " x", "\u0301"));
  EXPECT_THAT(Split({kFamily}, " \n \n"), ElementsAre(" \n \n"));
}

TEST(PreTokenizerTest, TextBetweenMatchesIsAPiece) {
  EXPECT_THAT(Split({"b+"}, "abbcb"), ElementsAre("a", "bb", "c", "b"));
  EXPECT_THAT(Split({}, "abc"), ElementsAre("abc"));
}

TEST(PreTokenizerTest, LaterStepsCutThePiecesOfEarlierOnes) {
  EXPECT_THAT(Split({"\\d{1,3}", "2|x$"}, "12345xx"),
              ElementsAre("1", "2", "3", "45", "x", "x"));
  // Every piece is a text of its own: "^" and look-behind end at its edges.
  EXPECT_THAT(Split({"b", "(?<=b)c"}, "abcc"), ElementsAre("a", "b", "cc"));
}

TEST(PreTokenizerTest, WhiteSpaceIsTheUnicodeProperty) {
  // U+180E was white space in old versions of Unicode only.
  EXPECT_THAT(Split({"\\s"}, "a\u180eb"), ElementsAre("a\u180eb"));
  for (uint32_t c : {0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x20, 0x85, 0xA0, 0x1680,
                     0x2000, 0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}) {
    std::string space;
    AppendCodePoint(c, &space);
    EXPECT_THAT(Split({"\\s"}, "a" + space + "b"),
                ElementsAre("a", space, "b"));
    EXPECT_THAT(Split({"[^\\s]"}, space), ElementsAre(space));
    EXPECT_THAT(Split({"\\S"}, space + space), ElementsAre(space + space));
  }
  for (uint32_t c : {0x08, 0x1C, 0x1F, 0x200B, 0x2060, 0xFEFF}) {
    std::string other;
    AppendCodePoint(c, &other);
    EXPECT_THAT(Split({"\\s"}, "a" + other), ElementsAre("a" + other));
  }
}

TEST(PreTokenizerTest, ReportsAPatternThatExplodes) {
  const auto pre_tokenizer = PreTokenizer::Create({"(a|a)+b|(aa|a)+c"});
  ASSERT_TRUE(pre_tokenizer.ok());
  PreTokenizer::Scratch scratch;
  const absl::Status status =
      (*pre_tokenizer)
          ->Split(std::string(64, 'a'), &scratch, [](absl::string_view) {});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("64 bytes"));
}

TEST(PreTokenizerTest, RefusesWhatMeansSomethingElse) {
  for (const char* pattern :
       {"[\\S]", "[a[b]]", "[a&&b]", "a*", "(", "(?<n>"}) {
    EXPECT_EQ(PreTokenizer::Create({pattern}).status().code(),
              absl::StatusCode::kInvalidArgument)
        << pattern;
  }
}

}  // namespace
}  // namespace ring
