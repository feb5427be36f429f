#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/random.h"
#include "kernels/weights/random_weights.h"

namespace ring {
namespace {

// sqrt(2 * (256^2 - 1) / 12), the standard deviation of a sum of two bytes.
constexpr double kSumDeviation = 104.51076;

template <typename Element>
class Draws {
 public:
  Draws(uint64_t key, const std::array<Element, kRandomLevels>& levels)
      : key_({static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)}),
        levels_(levels) {}

  // Elements [begin, begin + count) of the tensor.
  void Fill(int64_t begin, int64_t count, Element* out) const {
    int64_t skip = begin % kRandomPerBlock;
    for (int64_t block = begin / kRandomPerBlock; count > 0; ++block) {
      const std::array<uint32_t, 4> words =
          Philox4x32({static_cast<uint32_t>(block),
                      static_cast<uint32_t>(block >> 32), 0, 0},
                     key_);
      const int64_t last = std::min(kRandomPerBlock, skip + count);
      for (int64_t i = skip; i < last; ++i) {
        const uint32_t bits = words[i / 2] >> (16 * (i % 2));
        *out++ = levels_[(bits & 0xff) + (bits >> 8 & 0xff)];
      }
      count -= last - skip;
      skip = 0;
    }
  }

 private:
  const std::array<uint32_t, 2> key_;
  const std::array<Element, kRandomLevels>& levels_;
};

template <typename Element>
void FillRows(const RandomWeightsArgs& args,
              const std::array<Element, kRandomLevels>& levels) {
  const Draws<Element> draws(args.key, levels);
  auto* out = static_cast<Element*>(args.out);
  for (int64_t i = 0; i < args.rows; ++i) {
    draws.Fill((args.row_begin + i) * args.tensor_cols + args.col_begin,
               args.cols, out);
    out += args.cols;
  }
}

}  // namespace

std::array<float, kRandomLevels> RandomWeightLevels(double mean,
                                                    double deviation) {
  std::array<float, kRandomLevels> levels;
  for (int i = 0; i < kRandomLevels; ++i) {
    levels[i] =
        static_cast<float>(mean + deviation * (i - 255) / kSumDeviation);
  }
  return levels;
}

namespace cpu {

void RandomWeights(const RandomWeightsArgs& args) {
  const auto levels = RandomWeightLevels(args.mean, args.deviation);
  if (args.dtype == DType::kFloat32) return FillRows(args, levels);
  RING_CHECK(args.dtype == DType::kBFloat16) << Name(args.dtype);
  std::array<BFloat16, kRandomLevels> rounded;
  std::transform(levels.begin(), levels.end(), rounded.begin(), ToBFloat16);
  FillRows(args, rounded);
}

}  // namespace cpu
}  // namespace ring
