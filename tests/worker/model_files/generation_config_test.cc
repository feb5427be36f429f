#include "worker/model_files/generation_config.h"

#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ring {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(GenerationConfigTest, ReadsRingTiny) {
  const auto config =
      ReadGenerationConfig(std::string(RING_TEST_DATA) + "/ring-tiny");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->eos_token_ids, ElementsAre(807, 808));
  EXPECT_EQ(config->do_sample, false);
  EXPECT_EQ(config->max_new_tokens, 512);
  EXPECT_FALSE(config->temperature.has_value());
}

TEST(GenerationConfigTest, ReadsEveryField) {
  const auto config =
      ParseGenerationConfig(Json{{"eos_token_id", 5},
                                 {"do_sample", true},
                                 {"temperature", 0.6},
                                 {"top_p", 0.95},
                                 {"min_p", 0.05},
                                 {"top_k", 20},
                                 {"repetition_penalty", 1.1},
                                 {"max_new_tokens", 32768},
                                 {"transformers_version", "4.56.1"}});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->eos_token_ids, ElementsAre(5));
  EXPECT_EQ(config->do_sample, true);
  EXPECT_EQ(config->temperature, 0.6);
  EXPECT_EQ(config->top_p, 0.95);
  EXPECT_EQ(config->min_p, 0.05);
  EXPECT_EQ(config->top_k, 20);
  EXPECT_EQ(config->repetition_penalty, 1.1);
  EXPECT_EQ(config->max_new_tokens, 32768);
}

TEST(GenerationConfigTest, IsEmptyWithoutFile) {
  const auto config = ReadGenerationConfig("/nonexistent");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->eos_token_ids.empty());
}

TEST(GenerationConfigTest, RefusesValuesWithoutMeaning) {
  const std::vector<std::pair<const char*, Json>> cases = {
      {"eos_token_id", "five"},
      {"eos_token_id", {1, -2}},
      {"do_sample", 1},
      {"temperature", -0.5},
      {"top_p", 0},
      {"top_p", 1.5},
      {"min_p", -1},
      {"top_k", 1.5},
      {"top_k", -1},
      {"repetition_penalty", 0},
      {"max_new_tokens", 0},
  };
  for (const auto& [name, value] : cases) {
    const auto config = ParseGenerationConfig(Json{{name, value}});
    EXPECT_TRUE(absl::IsInvalidArgument(config.status()));
    EXPECT_THAT(std::string(config.status().message()),
                HasSubstr(std::string(name) + " = " + value.dump()));
  }
  EXPECT_FALSE(ParseGenerationConfig(Json::array()).ok());
}

}  // namespace
}  // namespace ring
