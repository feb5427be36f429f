#include <algorithm>
#include <cmath>

#include "kernels/base/check.h"
#include "kernels/base/thread_pool.h"
#include "kernels/rope/rope.h"

namespace ring {
namespace {

// The dimension whose wave makes `rotations` turns over the original length.
double CorrectionDim(const RopeParameters& p, double rotations) {
  constexpr double kTwoPi = 6.283185307179586476925286766559;
  return p.rotary_dim *
         std::log(p.original_max_position_embeddings / (rotations * kTwoPi)) /
         (2 * std::log(p.theta));
}

}  // namespace

RopeFrequencies MakeRopeFrequencies(const RopeParameters& p) {
  RING_CHECK_GE(p.rotary_dim, 0);
  RING_CHECK_EQ(p.rotary_dim % 2, 0);
  RING_CHECK_GT(p.theta, 0);
  RopeFrequencies result;
  const int half = p.rotary_dim / 2;
  for (int i = 0; i < half; ++i) {
    result.frequency.push_back(std::pow(p.theta, -2.0 * i / p.rotary_dim));
  }
  if (p.factor == 1) return result;

  RING_CHECK_GT(p.original_max_position_embeddings, 0);
  const double low = std::max(std::floor(CorrectionDim(p, p.beta_fast)), 0.0);
  const double high =
      std::min(std::ceil(CorrectionDim(p, p.beta_slow)), p.rotary_dim - 1.0);
  for (int i = 0; i < half; ++i) {
    const double ramp =
        std::clamp((i - low) / std::max(high - low, 1e-3), 0.0, 1.0);
    // 1: keep the frequency, 0: divide it by the factor.
    const double keep = (1 - ramp) * p.extrapolation_factor;
    result.frequency[i] *= keep + (1 - keep) / p.factor;
  }
  result.gain =
      p.attn_factor * (p.factor > 1 ? 0.1 * std::log(p.factor) + 1 : 1.0);
  return result;
}

namespace cpu {

void RopeTable(const RopeTableArgs& args, ThreadPool* pool) {
  constexpr int64_t kRowGrain = 8;
  pool->ParallelFor(args.rows, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int i = 0; i < args.half; ++i) {
        const double angle = args.positions[row] * args.frequency[i];
        args.cos[row * args.half + i] =
            static_cast<float>(args.gain * std::cos(angle));
        args.sin[row * args.half + i] =
            static_cast<float>(args.gain * std::sin(angle));
      }
    }
  });
}

}  // namespace cpu
}  // namespace ring
