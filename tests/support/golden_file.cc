#include "tests/support/golden_file.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>

#include "kernels/base/check.h"
#include "nlohmann/json.hpp"

namespace ring {
namespace {

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  RING_CHECK(file.good()) << path;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

std::string GoldenPath(const std::string& name) {
  return std::string(RING_TEST_DATA) + "/golden/" + name;
}

}  // namespace

std::vector<GoldenPrompt> ReadGoldenPrompts() {
  const auto json =
      nlohmann::json::parse(ReadAll(GoldenPath("golden_public.json")));
  std::vector<GoldenPrompt> prompts;
  for (const auto& entry : json.at("prompts")) {
    GoldenPrompt prompt;
    prompt.prompt = entry.at("prompt");
    prompt.prompt_ids = entry.at("prompt_ids").get<std::vector<int32_t>>();
    prompt.completion_ids =
        entry.at("completion_ids").get<std::vector<int32_t>>();
    prompt.completion = entry.at("completion");
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

// A reader of its own: the one under test is not trusted here.
std::vector<float> ReadGoldenTensor(const std::string& name) {
  const std::string file = ReadAll(GoldenPath("golden_public.safetensors"));
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) {
    header_bytes = header_bytes << 8 | static_cast<uint8_t>(file[i]);
  }
  const auto header = nlohmann::json::parse(file.substr(8, header_bytes));
  const auto& entry = header.at(name);
  RING_CHECK(entry.at("dtype") == "F32") << name;
  const size_t begin = entry.at("data_offsets").at(0);
  const size_t end = entry.at("data_offsets").at(1);
  std::vector<float> values((end - begin) / sizeof(float));
  std::memcpy(values.data(), file.data() + 8 + header_bytes + begin,
              end - begin);
  return values;
}

double RelativeL2(const std::vector<float>& got,
                  const std::vector<float>& want) {
  RING_CHECK_EQ(got.size(), want.size());
  double error = 0;
  double norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double difference = double{got[i]} - double{want[i]};
    error += difference * difference;
    norm += double{want[i]} * double{want[i]};
  }
  return std::sqrt(error / norm);
}

}  // namespace ring
