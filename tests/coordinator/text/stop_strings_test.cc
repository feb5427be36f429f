#include "coordinator/text/stop_strings.h"

#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace ring {
namespace {

struct Outcome {
  std::string text;
  int index = -1;
  bool operator==(const Outcome& other) const {
    return text == other.text && index == other.index;
  }
};

// The definition, by trying every end position.
Outcome Expected(const std::vector<std::string>& stops,
                 const std::string& text) {
  for (size_t end = 0; end <= text.size(); ++end) {
    Outcome best;
    size_t best_bytes = 0;
    for (size_t s = 0; s < stops.size(); ++s) {
      const size_t bytes = stops[s].size();
      if (bytes <= end && bytes > best_bytes &&
          text.compare(end - bytes, bytes, stops[s]) == 0) {
        best_bytes = bytes;
        best = {text.substr(0, end - bytes), static_cast<int>(s)};
      }
    }
    if (best.index >= 0) return best;
  }
  return {text, -1};
}

Outcome Feed(const std::vector<std::string>& stops,
             const std::vector<std::string>& deltas) {
  StopStrings matcher(stops);
  Outcome outcome;
  for (const std::string& delta : deltas) outcome.text += matcher.Append(delta);
  outcome.text += matcher.Finish();
  if (matcher.matched()) outcome.index = matcher.matched_index();
  return outcome;
}

TEST(StopStringsTest, PassesEverythingWithoutStops) {
  EXPECT_EQ(Feed({}, {"a", "", "bc"}), (Outcome{"abc", -1}));
}

TEST(StopStringsTest, CutsBeforeTheMatchAndDropsWhatFollows) {
  EXPECT_EQ(Feed({"END"}, {"some E", "N", "D more", "text"}),
            (Outcome{"some ", 0}));
}

TEST(StopStringsTest, HoldsBackNoMoreThanACouldBeBeginning) {
  StopStrings matcher({"abac", "zz"});
  EXPECT_EQ(matcher.Append("xaba"), "x");
  EXPECT_EQ(matcher.Append("b"), "ab");  // "ab" can still begin "abac"
  EXPECT_EQ(matcher.Append("q"), "abq");
  EXPECT_EQ(matcher.Append("z"), "");
  EXPECT_EQ(matcher.Append(""), "");
  EXPECT_EQ(matcher.Finish(), "z");
  EXPECT_FALSE(matcher.matched());
}

TEST(StopStringsTest, TheFirstToEndWinsAndThenTheLongest) {
  EXPECT_EQ(Feed({"abcd", "bc"}, {"xabcd"}), (Outcome{"xa", 1}));
  EXPECT_EQ(Feed({"bc", "abc"}, {"xabcd"}), (Outcome{"x", 1}));
  EXPECT_EQ(Feed({"bc", "bc"}, {"abc"}), (Outcome{"a", 0}));
}

TEST(StopStringsTest, KeepsCharactersWhole) {
  // Both share their first two bytes.
  StopStrings matcher({"\u2713x"});
  EXPECT_EQ(matcher.Append("a\u2714"), "a\u2714");
  EXPECT_EQ(matcher.Append("\u2713"), "");
  EXPECT_EQ(matcher.Append("y"), "\u2713y");
}

// A small alphabet makes overlaps and near misses common.
TEST(StopStringsTest, EqualsTheDefinitionOnRandomText) {
  std::mt19937 random(1);
  const auto word = [&random](size_t max_bytes) {
    std::string text(random() % max_bytes + 1, 'a');
    for (char& c : text) c = static_cast<char>('a' + random() % 2);
    return text;
  };
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::string> stops(random() % 4);
    for (std::string& stop : stops) stop = word(6);
    const std::string text = word(24);
    std::vector<std::string> deltas;
    for (size_t pos = 0; pos < text.size();) {
      deltas.push_back(text.substr(pos, random() % 4));
      pos += deltas.back().size();
    }
    const Outcome expected = Expected(stops, text);
    const Outcome outcome = Feed(stops, deltas);
    ASSERT_EQ(outcome.text, expected.text) << text;
    ASSERT_EQ(outcome.index, expected.index) << text;
  }
}

TEST(StopStringsDeathTest, RefusesAnEmptyStopString) {
  EXPECT_DEATH(StopStrings({""}), "empty stop string");
}

}  // namespace
}  // namespace ring
