#include "worker/model_files/json.h"

#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/text_file.h"

namespace ring {
namespace {

using ::testing::HasSubstr;

std::string Nested(int depth) {
  return std::string(depth, '[') + std::string(depth, ']');
}

TEST(ParseJsonTest, BuildsTheDocument) {
  const auto json = ParseJson(
      R"({"a": [1, -2, 2.5, true, null, "x\u00e9"], "b": {"c": {}}, "d": []})",
      "test");
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ((*json)["a"].size(), 6u);
  EXPECT_EQ((*json)["a"][1].get<int>(), -2);
  EXPECT_EQ((*json)["a"][2].get<double>(), 2.5);
  EXPECT_EQ((*json)["a"][5].get<std::string>(), "x\xc3\xa9");
  EXPECT_TRUE((*json)["b"]["c"].is_object());
  EXPECT_TRUE((*json)["d"].is_array());
}

TEST(ParseJsonTest, AcceptsABareValue) {
  EXPECT_EQ(ParseJson("17", "test")->get<int>(), 17);
}

TEST(ParseJsonTest, NamesFileAndByteOfASyntaxError) {
  const auto json = ParseJson("{\"a\": 1,}", "config.json");
  EXPECT_EQ(json.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(json.status().message(), HasSubstr("config.json"));
  EXPECT_THAT(json.status().message(), HasSubstr("byte 9"));
}

TEST(ParseJsonTest, RefusesTextAfterTheDocument) {
  EXPECT_FALSE(ParseJson("{} {}", "test").ok());
  EXPECT_FALSE(ParseJson("", "test").ok());
}

TEST(ParseJsonTest, RefusesNumbersThatOverflow) {
  EXPECT_FALSE(ParseJson("1e999", "test").ok());
}

TEST(ParseJsonTest, RefusesADuplicateKeyByName) {
  const auto json = ParseJson(R"({"x": {"rope": 1, "rope": 2}})", "test");
  EXPECT_EQ(json.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(json.status().message(), HasSubstr("\"rope\" occurs twice"));
  // The same name in two objects is fine.
  EXPECT_TRUE(ParseJson(R"([{"rope": 1}, {"rope": 2}])", "test").ok());
}

TEST(ParseJsonTest, StopsAtTheDepthLimit) {
  EXPECT_TRUE(ParseJson(Nested(kMaxJsonDepth), "test").ok());
  const auto json = ParseJson(Nested(kMaxJsonDepth + 1), "test");
  EXPECT_EQ(json.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(json.status().message(), HasSubstr("64 levels"));
  // A hostile document ends at the limit, not at the end of the stack.
  EXPECT_FALSE(ParseJson(std::string(10'000'000, '['), "test").ok());
}

TEST(ReadFileTest, NamesTheMissingFile) {
  const auto text = ReadTextFile("/nonexistent/config.json", 10);
  EXPECT_EQ(text.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(text.status().message(), HasSubstr("/nonexistent/config.json"));
}

TEST(ReadFileTest, RefusesAFileOverTheLimit) {
  const std::string path = testing::TempDir() + "/json_test_limit";
  std::ofstream(path, std::ios::binary) << "[1, 2]";
  EXPECT_EQ(*ReadTextFile(path, 6), "[1, 2]");
  EXPECT_EQ(ReadJsonFile(path)->size(), 2u);
  const auto text = ReadTextFile(path, 5);
  EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(text.status().message(), HasSubstr("5 bytes"));
}

TEST(ReadFileTest, RefusesAFolder) {
  EXPECT_EQ(ReadTextFile("/", 10).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace ring
