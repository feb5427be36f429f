// How GroupedFfn lays out its workspace on a GPU for many rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/grouped_ffn/sort_units.h"
#include "kernels/linear/tensor_gemm.h"

namespace ring::cuda {

// Fewer rows take the streaming kernels and need no workspace of this kind.
inline constexpr int64_t kMinPromptRows = 128;
// Rows that go through at a time. Every pass reads the experts' weights.
inline constexpr int64_t kMaxPromptRows = 16384;

struct PromptWorkspace {
  int64_t bytes = 0;
  int64_t places = 0;  // rows of x, h and y
  SortedUnits sorted;
  int32_t* counter = nullptr;
  // Rows of the units, in order of experts: activations of bf16 or e4m3 and,
  // once those are used, the experts' results of bf16. [places, hidden]
  void* x = nullptr;
  float* x_scales = nullptr;  // [places, ScaleStride(hidden)]
  void* h = nullptr;          // [places, inter], bf16 or e4m3
  float* h_scales = nullptr;  // [places, ScaleStride(inter)]

  PromptWorkspace(void* base, int64_t rows, int64_t top_k, int64_t hidden,
                  int64_t inter, int64_t experts) {
    const int64_t units = rows * top_k;
    places = MaxPlaces(units, experts);
    const auto take = [&](int64_t count, int64_t element_bytes) {
      char* const part =
          base == nullptr ? nullptr : static_cast<char*>(base) + bytes;
      bytes += (count * element_bytes + 255) / 256 * 256;
      return static_cast<void*>(part);
    };
    sorted.place = static_cast<int32_t*>(take(units, 4));
    sorted.tiles =
        static_cast<RowTile*>(take(MaxTiles(units, experts), sizeof(RowTile)));
    sorted.num_tiles = static_cast<int32_t*>(take(1, 4));
    sorted.counts = static_cast<int32_t*>(take(UnitBlocks(units) * experts, 4));
    sorted.first = static_cast<int32_t*>(take(experts, 4));
    counter = static_cast<int32_t*>(take(1, 4));
    x = take(places * hidden, 2);
    x_scales = static_cast<float*>(take(places * ScaleStride(hidden), 4));
    h = take(places * inter, 2);
    h_scales = static_cast<float*>(take(places * ScaleStride(inter), 4));
  }
};

// What GroupedFfnArgs::workspace needs for this.
inline int64_t PromptWorkspaceBytes(int64_t rows, int64_t top_k, int64_t hidden,
                                    int64_t inter, int64_t experts) {
  if (rows < kMinPromptRows) return 0;
  return PromptWorkspace(nullptr, std::min(rows, kMaxPromptRows), top_k, hidden,
                         inter, experts)
      .bytes;
}

}  // namespace ring::cuda
