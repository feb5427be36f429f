// Rotary embedding tables of one step.
#pragma once

#include <cstdint>
#include <vector>

namespace ring {

class ThreadPool;

// Base frequencies and YaRN scaling (Peng et al., arXiv 2309.00071) as the
// vendor's engine applies it: slow dimensions are divided by `factor`, and cos
// and sin are multiplied by attn_factor * (0.1 ln(factor) + 1).
struct RopeParameters {
  int rotary_dim = 0;
  double theta = 0;
  double factor = 1;  // 1: no scaling, the rest is unused
  double original_max_position_embeddings = 0;
  double beta_fast = 32;
  double beta_slow = 1;
  double attn_factor = 1;
  double extrapolation_factor = 1;
};

struct RopeFrequencies {
  std::vector<double> frequency;  // [rotary_dim / 2], theta^(-2 i / rotary_dim)
  double gain = 1;                // multiplies cos and sin
};

RopeFrequencies MakeRopeFrequencies(const RopeParameters& parameters);

// cos[r][i] = gain * cos(positions[r] * frequency[i]), sin likewise. Angles
// are taken in double: at position 1e5 an fp32 angle is off by 0.004.
struct RopeTableArgs {
  const int32_t* positions = nullptr;  // [rows]; padding rows may be anything
  int64_t rows = 0;
  const double* frequency = nullptr;  // [half]
  double gain = 1;
  int half = 0;
  float* cos = nullptr;  // [rows, half]
  float* sin = nullptr;  // [rows, half]
};

namespace cpu {
void RopeTable(const RopeTableArgs& args, ThreadPool* pool);
}
namespace cuda {
class Stream;
void RopeTable(const RopeTableArgs& args, Stream* stream);
}  // namespace cuda

}  // namespace ring
