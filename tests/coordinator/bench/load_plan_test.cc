#include "coordinator/cli/bench/load_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace ring {
namespace {

using ::testing::HasSubstr;

constexpr int kDraws = 20000;

Lengths Parsed(const std::string& text) {
  const absl::StatusOr<Lengths> lengths = ParseLengths(text);
  EXPECT_TRUE(lengths.ok()) << lengths.status();
  return lengths.value_or(Lengths{});
}

std::vector<int64_t> Draw(const std::string& text) {
  const Lengths lengths = Parsed(text);
  std::mt19937_64 random(1);
  std::vector<int64_t> values(kDraws);
  for (int64_t& value : values) value = lengths.Draw(&random);
  std::sort(values.begin(), values.end());
  return values;
}

double Mean(const std::vector<int64_t>& values) {
  double sum = 0;
  for (const int64_t value : values) sum += static_cast<double>(value);
  return sum / static_cast<double>(values.size());
}

TEST(LengthsTest, AreFixedUniformOrNormal) {
  const std::vector<int64_t> fixed = Draw("128");
  EXPECT_EQ(fixed.front(), 128);
  EXPECT_EQ(fixed.back(), 128);

  // Each of 5 values with a fifth of the draws, within 5 deviations.
  const std::vector<int64_t> uniform = Draw("3:7");
  for (int64_t value = 3; value <= 7; ++value) {
    const auto count =
        static_cast<double>(std::count(uniform.begin(), uniform.end(), value));
    EXPECT_NEAR(count, kDraws / 5.0, 5 * std::sqrt(kDraws * 0.2 * 0.8));
  }
  EXPECT_EQ(uniform.front(), 3);
  EXPECT_EQ(uniform.back(), 7);

  const std::vector<int64_t> normal = Draw("1000~50");
  EXPECT_NEAR(Mean(normal), 1000, 5 * 50 / std::sqrt(kDraws));
  // 15.87% lie below one deviation under the mean.
  EXPECT_NEAR(static_cast<double>(normal[kDraws * 1587 / 10000]), 950, 5);
  EXPECT_NEAR(static_cast<double>(normal[kDraws * 8413 / 10000]), 1050, 5);
  // Never less than 1, however wide.
  EXPECT_EQ(Draw("2~100").front(), 1);
}

TEST(LengthsTest, SayWhatIsWrong) {
  for (const auto& [text, message] :
       std::vector<std::pair<std::string, std::string>>{
           {"", "\"\" is no number in [1, 1073741824]"},
           {"0", "\"0\" is no number in [1, "},
           {"5:4", "\"4\" is no number in [5, "},
           {"5:", "\"\" is no number in [5, "},
           {"a~3", "\"a\" is no number"},
           {"3~0", "\"0\" is no number in [1, "},
           {"1:2:3", "\"2:3\" is no number"}}) {
    const absl::Status status = ParseLengths(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
}

TEST(TraceTest, HasTextsOrLengths) {
  const auto trace = ParseTrace(
      "{\"arrival_s\": 0, \"prompt_tokens\": 12, \"max_tokens\": 3}\n"
      "\n"
      "{\"max_tokens\": 4, \"text\": \"Hi\", \"arrival_s\": 1.5}\n");
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->size(), 2u);
  EXPECT_EQ((*trace)[0].arrival_s, 0);
  EXPECT_EQ((*trace)[0].prompt_tokens, 12);
  EXPECT_EQ((*trace)[0].max_tokens, 3);
  EXPECT_EQ((*trace)[1].arrival_s, 1.5);
  EXPECT_EQ((*trace)[1].text, "Hi");
  EXPECT_EQ((*trace)[1].max_tokens, 4);
}

TEST(TraceTest, SaysWhatIsWrongWhere) {
  const std::string good =
      "{\"arrival_s\": 2, \"prompt_tokens\": 1, \"max_tokens\": 1}\n";
  for (const auto& [line, message] :
       std::vector<std::pair<std::string, std::string>>{
           {"{", "line 2: "},
           {"[]", "line 2: there is no JSON object"},
           {R"({"arrival_s": 1, "prompt_tokens": 1, "max_tokens": 1})",
            "line 2: arrival_s has to be a number of seconds, at least 2"},
           {R"({"arrival_s": 3, "prompt_tokens": 0, "max_tokens": 1})",
            "line 2: prompt_tokens has to be an integer in [1, "},
           {R"({"arrival_s": 3, "prompt_tokens": 1})",
            "line 2: max_tokens has to be"},
           {R"({"arrival_s": 3, "max_tokens": 1})",
            "line 2: give either prompt_tokens or text"},
           {R"({"arrival_s": 3, "max_tokens": 1, "text": ""})",
            "line 2: text has to be a string, not empty"},
           {R"({"arrival_s": 3, "max_tokens": 1, "prompt": "x"})",
            "line 2: unknown key prompt"}}) {
    const absl::Status status = ParseTrace(good + line).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << line;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
  EXPECT_FALSE(ParseTrace("\n").ok());
}

TEST(LoadPlanTest, ArrivesAtRandomWithTheRate) {
  LoadPlan plan({.rate = 50, .seed = 3});
  std::vector<double> gaps;
  double last = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double arrival = plan.Next()->arrival_s;
    EXPECT_GT(arrival, last);
    gaps.push_back(arrival - last);
    last = arrival;
  }
  // Exponential gaps: the mean, and half of them below log(2) times it.
  EXPECT_NEAR(last / kDraws, 0.02, 5 * 0.02 / std::sqrt(kDraws));
  std::sort(gaps.begin(), gaps.end());
  EXPECT_NEAR(gaps[kDraws / 2], 0.02 * std::log(2.0),
              5 * 0.02 / std::sqrt(kDraws));
}

TEST(LoadPlanTest, ASeedGivesTheSameLoadAtEachRate) {
  LoadPlan slow({.prompt = Parsed("1:1000"),
                 .output = Parsed("90~30"),
                 .rate = 1,
                 .seed = 9});
  LoadPlan fast({.prompt = Parsed("1:1000"),
                 .output = Parsed("90~30"),
                 .rate = 10,
                 .seed = 9});
  LoadPlan other(
      {.prompt = Parsed("1:1000"), .output = Parsed("90~30"), .seed = 10});
  int different = 0;
  for (int i = 0; i < 100; ++i) {
    const PlannedRequest a = *slow.Next();
    const PlannedRequest b = *fast.Next();
    const PlannedRequest c = *other.Next();
    EXPECT_EQ(a.prompt_tokens, b.prompt_tokens);
    EXPECT_EQ(a.max_tokens, b.max_tokens);
    EXPECT_NEAR(a.arrival_s, 10 * b.arrival_s, 1e-6);
    EXPECT_EQ(c.arrival_s, 0);
    if (a.prompt_tokens != c.prompt_tokens) ++different;
  }
  EXPECT_GT(different, 90);
}

TEST(LoadPlanTest, ATraceEndsAndMayGetOtherArrivals) {
  const std::vector<PlannedRequest> trace = {
      {.arrival_s = 0.5, .text = "", .prompt_tokens = 7, .max_tokens = 8},
      {.arrival_s = 4, .text = "Hi", .prompt_tokens = 0, .max_tokens = 9}};
  LoadPlan own({.trace = trace});
  EXPECT_EQ(own.Next()->arrival_s, 0.5);
  const std::optional<PlannedRequest> second = own.Next();
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ(second->arrival_s, 4);
  EXPECT_EQ(second->text, "Hi");
  EXPECT_FALSE(own.Next().has_value());

  LoadPlan poisson({.trace = trace, .rate = 1000});
  const std::optional<PlannedRequest> first = poisson.Next();
  EXPECT_EQ(first->prompt_tokens, 7);
  EXPECT_LT(first->arrival_s, 0.5);
}

}  // namespace
}  // namespace ring
