// Checkpoints whose weights are no numbers: every request ends with the reason
// and the group goes on.
#include <gmock/gmock.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <tuple>

#include "gtest/gtest.h"
#include "tests/support/mini_group.h"
#include "tests/support/tiny_checkpoint.h"

namespace ring {
namespace {

// Every data byte becomes 0xff: NaN as bf16, fp32 and e4m3.
void FillWithNaN(const std::string& dir) {
  for (const auto& entry : std::filesystem::directory_iterator(dir)) {
    if (entry.path().extension() != ".safetensors") continue;
    std::fstream file(entry.path(),
                      std::ios::in | std::ios::out | std::ios::binary);
    uint64_t header = 0;
    file.read(reinterpret_cast<char*>(&header), sizeof(header));
    const uint64_t begin = sizeof(header) + header;
    file.seekp(static_cast<std::streamoff>(begin));
    std::fill_n(std::ostreambuf_iterator<char>(file), entry.file_size() - begin,
                '\xff');
    ASSERT_TRUE(file.good());
  }
}

// dp, tp, block FP8.
class NotNumbersTest
    : public ::testing::TestWithParam<std::tuple<int, int, bool>> {};

TEST_P(NotNumbersTest, EndRequestsAndNotTheGroup) {
  const auto [dp, tp, block_fp8] = GetParam();
  TinyCheckpointOptions checkpoint_options;
  checkpoint_options.block_fp8 = block_fp8;
  const TinyCheckpoint checkpoint(TinyConfigJson(), checkpoint_options);
  FillWithNaN(checkpoint.dir());
  MiniGroup::Options options;
  options.model_dir = checkpoint.dir();
  options.dp = dp;
  options.tp = tp;
  options.max_context = 256;
  options.kv_tokens = 1024;
  const auto group = MiniGroup::Start(options);
  ASSERT_TRUE(group.ok()) << group.status();
  // A prompt of one piece, one of several, and again when all was nonsense.
  for (const size_t prompt : {1, 150, 3}) {
    for (const float temperature : {0.0f, 1.0f}) {
      GenerationRequest request;
      request.prompt.assign(prompt, 5);
      request.max_new_tokens = 4;
      request.sampling.temperature = temperature;
      const Completion completion = (*group)->Run(request);
      EXPECT_EQ(completion.error.code(), absl::StatusCode::kInternal);
      EXPECT_THAT(std::string(completion.error.message()),
                  ::testing::HasSubstr("are not numbers"));
      EXPECT_TRUE(completion.tokens.empty());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, NotNumbersTest,
                         ::testing::Values(std::tuple(1, 1, false),
                                           std::tuple(1, 2, false),
                                           std::tuple(2, 1, false),
                                           std::tuple(1, 2, true)));

}  // namespace
}  // namespace ring
