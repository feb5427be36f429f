// Units (row, slot) put in order of their experts.
#pragma once

#include "kernels/linear/tensor_gemm.h"

namespace ring::cuda {

class Stream;

// Every expert's units, in the order of their numbers, get neighbouring places,
// the first of which is a multiple of kRowAlign. All on the device.
struct SortedUnits {
  int32_t* place = nullptr;      // [units]: -1 for a unit without expert
  RowTile* tiles = nullptr;      // [MaxTiles]: places by expert
  int32_t* num_tiles = nullptr;  // [1]
  int32_t* counts = nullptr;     // [UnitBlocks, experts], scratch
  int32_t* first = nullptr;      // [experts], scratch
};

inline constexpr int kUnitsPerBlock = 1024;
constexpr int64_t UnitBlocks(int64_t units) {
  return (units + kUnitsPerBlock - 1) / kUnitsPerBlock;
}
// Upper bounds for `units` units of `experts` experts.
constexpr int64_t MaxPlaces(int64_t units, int64_t experts) {
  return (units + experts * (kRowAlign - 1)) / kRowAlign * kRowAlign;
}
constexpr int64_t MaxTiles(int64_t units, int64_t experts) {
  return units / kTileRows + experts;
}

// experts: [units], -1 or below num_experts.
void SortUnits(const int32_t* experts, int64_t units, int num_experts,
               const SortedUnits& sorted, Stream* stream);

}  // namespace ring::cuda
