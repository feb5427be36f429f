// The float64 results that come with the bundled model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ring {

struct GoldenPrompt {
  std::string prompt;
  std::vector<int32_t> prompt_ids;
  std::vector<int32_t> completion_ids;
  std::string completion;
};

// tests/data/golden/golden_public.json; ends the test program if it cannot be
// read.
std::vector<GoldenPrompt> ReadGoldenPrompts();

// A tensor of golden_public.safetensors, fp32, flat.
std::vector<float> ReadGoldenTensor(const std::string& name);

// || got - want || / || want ||
double RelativeL2(const std::vector<float>& got,
                  const std::vector<float>& want);

}  // namespace ring
