#include "coordinator/text/reasoning_splitter.h"

#include <string>
#include <utility>
#include <vector>

#include "coordinator/text/tokenizer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ring {
namespace {

using Parts = std::pair<std::string, std::string>;  // reasoning, answer

// Feeds pieces of `piece_bytes` each.
Parts Split(bool starts_in_thinking, const std::string& text,
            size_t piece_bytes) {
  ReasoningSplitter splitter(starts_in_thinking);
  Parts parts;
  const auto add = [&parts](const ReasoningSplitter::Text& delta) {
    parts.first += delta.reasoning;
    parts.second += delta.answer;
  };
  for (size_t pos = 0; pos < text.size(); pos += piece_bytes) {
    add(splitter.Append(text.substr(pos, piece_bytes)));
  }
  add(splitter.Finish());
  return parts;
}

struct Case {
  bool starts_in_thinking;
  const char* text;
  const char* reasoning;
  const char* answer;
};

class ReasoningSplitterCaseTest : public testing::TestWithParam<Case> {};

TEST_P(ReasoningSplitterCaseTest, SplitsTheSameHoweverItIsCut) {
  const Case& c = GetParam();
  const std::string text = c.text;
  for (size_t bytes = 1; bytes <= text.size() + 1; ++bytes) {
    EXPECT_EQ(Split(c.starts_in_thinking, text, bytes),
              Parts(c.reasoning, c.answer))
        << text << " in pieces of " << bytes;
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, ReasoningSplitterCaseTest,
    testing::Values(
        Case{false, "", "", ""}, Case{false, "plain", "", "plain"},
        Case{false, " \n plain", "", " \n plain"},
        Case{false, "<think>\na\nb\n</think>\n\nc\n", "a\nb", "c\n"},
        Case{false, "\n <think>a</think>b", "a", "b"},
        Case{false, "<think>a</think><think>b</think>", "a",
             "<think>b</think>"},
        Case{false, "a</think>b", "", "a</think>b"},
        Case{false, "<thin air", "", "<thin air"},
        Case{false, "<thin", "", "<thin"}, Case{false, " \n", "", " \n"},
        Case{false, "<think>a < b </thin</think>c", "a < b </thin", "c"},
        Case{false, "<think>never closed\n\n", "never closed\n\n", ""},
        Case{false, "<think>a\n</th", "a\n</th", ""},
        Case{false, "<think>\n\n</think>\n\n", "", ""},
        Case{true, "a\n\nb\n\n</think>\n\nc", "a\n\nb", "c"},
        Case{true, "\n<think>\na</think>c", "a", "c"},
        Case{true, "</think>c", "", "c"}, Case{true, "\n</think>\nc", "", "c"},
        Case{true, "unfinished", "unfinished", ""},
        Case{true, "<think", "<think", ""}));

TEST(ReasoningSplitterTest, StreamsWithoutDelay) {
  ReasoningSplitter splitter(true);
  EXPECT_TRUE(splitter.in_reasoning());
  EXPECT_EQ(splitter.Append("step one").reasoning, "step one");
  EXPECT_EQ(splitter.Append("\n").reasoning, "");
  EXPECT_EQ(splitter.Append("two <").reasoning, "\ntwo ");
  EXPECT_EQ(splitter.Append("3").reasoning, "<3");
  EXPECT_EQ(splitter.Append("\n</think>\nyes").answer, "yes");
  EXPECT_FALSE(splitter.in_reasoning());
}

TEST(PromptEndsInThinkingTest, LooksAtTheTailOnly) {
  EXPECT_FALSE(PromptEndsInThinking(""));
  EXPECT_FALSE(PromptEndsInThinking("<role>ASSISTANT</role>"));
  EXPECT_TRUE(PromptEndsInThinking("<role>ASSISTANT</role><think>"));
  EXPECT_TRUE(PromptEndsInThinking("<role>ASSISTANT</role><think>\n"));
  EXPECT_FALSE(PromptEndsInThinking("<role>ASSISTANT</role><think>\n</think>"));
  EXPECT_FALSE(PromptEndsInThinking(
      "<role>HUMAN</role>What is <think>?<|role_end|><role>ASSISTANT</role>"));
}

TEST(ReasoningTagIdsTest, FindsTheTagsOfRingTiny) {
  const auto tokenizer = Tokenizer::Load(RING_TEST_DATA "/ring-tiny");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(ReasoningTagIds(**tokenizer), testing::ElementsAre(811, 812));
}

}  // namespace
}  // namespace ring
