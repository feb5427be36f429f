// Weights whose scale blocks lie on multiples of 128, as the tensor-core
// products want them, and products of the same quantised numbers in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/grouped_ffn/grouped_ffn.h"
#include "tests/kernels/cuda/device_arena.h"

namespace ring {

// The values that a row of bf16 stands for once it is e4m3 with a scale per 128
// columns, in the arithmetic of QuantiseRowsArgs.
inline std::vector<double> QuantisedRow(const float* x, int64_t cols) {
  std::vector<double> values(cols);
  for (int64_t group = 0; group < cols; group += kScaleBlock) {
    float max_abs = 0;
    for (int64_t j = group; j < group + kScaleBlock; ++j) {
      max_abs = std::max(max_abs, std::abs(x[j]));
    }
    if (max_abs == 0) continue;
    const float inverse = 448.0f / max_abs;
    const float scale = max_abs / 448.0f;
    for (int64_t j = group; j < group + kScaleBlock; ++j) {
      values[j] = double{ToFloat(ToFloat8E4M3(x[j] * inverse))} * scale;
    }
  }
  return values;
}

// [rows, cols] of bf16 or e4m3 with scales of every 128 x 128 block, appended
// to the memory of a model that is then copied to the device as a whole.
class BlockWeight {
 public:
  BlockWeight(DType dtype, int64_t rows, int64_t cols, uint32_t seed,
              std::vector<char>* memory)
      : dtype_(dtype), rows_(rows), cols_(cols) {
    const auto take = [&](int64_t bytes) {
      const size_t offset = memory->size();
      memory->resize(offset + (bytes + 63) / 64 * 64);
      return static_cast<int64_t>(offset);
    };
    data_ = take(rows * cols * static_cast<int64_t>(SizeOf(dtype)));
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        const float value = TestValue(seed, i, j);
        if (dtype == DType::kFloat8E4M3) {
          Set(memory, data_, i * cols + j, ToFloat8E4M3(value));
        } else {
          Set(memory, data_, i * cols + j, ToBFloat16(value * kScale));
        }
      }
    }
    if (dtype != DType::kFloat8E4M3) return;
    const int64_t scale_cols = cols / kScaleBlock;
    scales_ = take(rows / kScaleBlock * scale_cols * 4);
    for (int64_t i = 0; i < rows / kScaleBlock * scale_cols; ++i) {
      Set(memory, scales_, i,
          kScale * (1.0f + std::abs(TestValue(seed + 1, i, 0))));
    }
    row_scale_ = take(rows * 4);
    for (int64_t i = 0; i < rows; ++i) {
      Set(memory, row_scale_, i, static_cast<int32_t>(i / kScaleBlock));
    }
  }

  WeightMatrix At(const char* memory) const {
    WeightMatrix w;
    w.dtype = dtype_;
    w.rows = rows_;
    w.cols = w.row_stride = cols_;
    w.data = memory + data_;
    if (dtype_ == DType::kFloat8E4M3) {
      w.scales = reinterpret_cast<const float*>(memory + scales_);
      w.row_scale = reinterpret_cast<const int32_t*>(memory + row_scale_);
      w.scale_cols = cols_ / kScaleBlock;
      w.scale_row_run = kScaleBlock;
    }
    return w;
  }

  // Row i in full precision.
  std::vector<double> Row(const std::vector<char>& memory, int64_t i) const {
    std::vector<double> row(cols_);
    const WeightMatrix w = At(memory.data());
    for (int64_t j = 0; j < cols_; ++j) {
      if (dtype_ == DType::kFloat8E4M3) {
        row[j] = double{ToFloat(
                     static_cast<const Float8E4M3*>(w.data)[i * cols_ + j])} *
                 w.scales[i / kScaleBlock * w.scale_cols + j / kScaleBlock];
      } else {
        row[j] = ToFloat(static_cast<const BFloat16*>(w.data)[i * cols_ + j]);
      }
    }
    return row;
  }

  // out[m][i] = x[m] . row i, for rows x in double.
  std::vector<std::vector<double>> Multiply(
      const std::vector<char>& memory,
      const std::vector<std::vector<double>>& x) const {
    std::vector<std::vector<double>> out(x.size(), std::vector<double>(rows_));
    for (int64_t i = 0; i < rows_; ++i) {
      const std::vector<double> w = Row(memory, i);
      for (size_t m = 0; m < x.size(); ++m) {
        double sum = 0;
        for (int64_t j = 0; j < cols_; ++j) sum += w[j] * x[m][j];
        out[m][i] = sum;
      }
    }
    return out;
  }

 private:
  static constexpr float kScale = 0.05f;

  template <typename T>
  static void Set(std::vector<char>* memory, int64_t base, int64_t i, T value) {
    std::memcpy(memory->data() + base + i * static_cast<int64_t>(sizeof(T)),
                &value, sizeof(T));
  }

  DType dtype_;
  int64_t rows_;
  int64_t cols_;
  int64_t data_ = 0;
  int64_t scales_ = 0;
  int64_t row_scale_ = 0;
};

}  // namespace ring
