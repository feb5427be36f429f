// Random matrices whose elements depend on nothing but a key and their place,
// so that every slice of a tensor is a slice of the same tensor.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/base/dtype.h"

namespace ring {

// Element i of a tensor (row-major) is made of 16 bits of Philox4x32 block
// i / 8 under `key`; the sum of their two bytes, 0 to 510 and symmetric around
// 255, picks one of the values of RandomWeightLevels.
struct RandomWeightsArgs {
  uint64_t key = 0;
  double mean = 0;
  double deviation = 0;
  // The rectangle of the tensor that is written, rows packed.
  int64_t tensor_cols = 0;
  int64_t row_begin = 0;
  int64_t rows = 0;
  int64_t col_begin = 0;
  int64_t cols = 0;
  void* out = nullptr;             // [rows, cols]
  DType dtype = DType::kBFloat16;  // bf16 or fp32
};

inline constexpr int kRandomLevels = 511;
inline constexpr int64_t kRandomPerBlock = 8;  // elements of a Philox block

// What a draw can be: a triangular distribution of this mean and deviation.
std::array<float, kRandomLevels> RandomWeightLevels(double mean,
                                                    double deviation);

namespace cpu {
// On the calling thread: whoever makes weights runs many of these at once.
void RandomWeights(const RandomWeightsArgs& args);
}  // namespace cpu
namespace cuda {
class Stream;
void RandomWeights(const RandomWeightsArgs& args, Stream* stream);
}  // namespace cuda

}  // namespace ring
