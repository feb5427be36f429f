#include "coordinator/text/text_stream.h"

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "coordinator/text/utf8.h"
#include "gtest/gtest.h"

namespace ring {
namespace {

using Ids = std::vector<int32_t>;

const Tokenizer& RingTiny() {
  static const auto* const tokenizer =
      Tokenizer::Load(RING_TEST_DATA "/ring-tiny")->release();
  return *tokenizer;
}

TEST(TextStreamTest, NeverEmitsHalfACharacter) {
  // The four bytes of U+1F600 are four tokens.
  const Ids ids = *RingTiny().Encode("\U0001F600!", AddedTokens::kRecognise);
  ASSERT_EQ(ids.size(), 5u);
  TextStream stream(&RingTiny(), {});
  for (int i = 0; i < 3; ++i) EXPECT_EQ(stream.Append({ids[i]}), "");
  EXPECT_EQ(stream.Append({ids[3]}), "\U0001F600");
  EXPECT_EQ(stream.Append({ids[4]}), "!");
  EXPECT_EQ(stream.Finish(), "");
}

TEST(TextStreamTest, FlushesAnUnfinishedCharacterAtTheEnd) {
  const Ids ids = *RingTiny().Encode("a\u20AC", AddedTokens::kRecognise);
  TextStream stream(&RingTiny(), {});
  EXPECT_EQ(stream.Append(absl::MakeSpan(ids).first(3)), "a");
  EXPECT_EQ(stream.Finish(), "\uFFFD");
}

TEST(TextStreamTest, LeavesSpecialTokensOutExceptThoseToKeep) {
  const Ids ids = *RingTiny().Encode("<think>\nx\n</think>y<|role_end|>",
                                     AddedTokens::kRecognise);
  EXPECT_EQ(TextStream(&RingTiny(), {}).Append(ids), "\nx\ny");
  EXPECT_EQ(TextStream(&RingTiny(), {false, {811, 812}}).Append(ids),
            "<think>\nx\n</think>y");
  EXPECT_EQ(TextStream(&RingTiny(), {true, {}}).Append(ids),
            "<think>\nx\n</think>y<|role_end|>");
}

// Random ids are mostly not UTF-8.
TEST(TextStreamTest, EqualsDecodingAtOnce) {
  std::mt19937 random(5);
  for (int round = 0; round < 1000; ++round) {
    Ids ids(random() % 20);
    // Ids 94..255 are single bytes above 0x7F.
    for (int32_t& id : ids) id = static_cast<int32_t>(80 + random() % 180);
    if (round % 3 == 0 && !ids.empty()) ids[random() % ids.size()] = 808;
    for (const bool keep_special : {false, true}) {
      TextStream stream(&RingTiny(), {keep_special, {}});
      std::string text;
      for (size_t pos = 0; pos < ids.size();) {
        const size_t count = std::min(ids.size() - pos, size_t{random() % 3});
        const std::string delta =
            stream.Append(absl::MakeSpan(ids).subspan(pos, count));
        EXPECT_EQ(ValidUtf8Prefix(delta), delta.size());
        text += delta;
        pos += count;
      }
      text += stream.Finish();
      EXPECT_EQ(text, RingTiny().Decode(ids, keep_special));
    }
  }
}

}  // namespace
}  // namespace ring
