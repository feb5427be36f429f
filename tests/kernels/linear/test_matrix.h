// Matrices of known values for tests of linear maps, with element access that
// does not go through the code under test.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/base/random.h"
#include "kernels/linear/weight_matrix.h"

namespace ring {

// Uniform in (-1, 1), a function of its arguments.
inline float TestValue(uint32_t seed, int64_t i, int64_t j) {
  const uint32_t bits =
      Philox4x32({static_cast<uint32_t>(i), static_cast<uint32_t>(j), seed, 0},
                 {17, 29})[0];
  return (static_cast<float>(bits >> 9) + 0.5f) * 0x1p-22f - 1;
}

// [rows, cols] activations of either type, without gaps.
class TestRows {
 public:
  TestRows(DType dtype, int64_t rows, int64_t cols, uint32_t seed)
      : dtype_(dtype), cols_(cols) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        wide_.push_back(TestValue(seed, i, j));
        narrow_.push_back(ToBFloat16(wide_.back()));
        if (dtype == DType::kBFloat16) wide_.back() = ToFloat(narrow_.back());
      }
    }
  }
  const void* row(int64_t i) const {
    if (dtype_ == DType::kBFloat16) return narrow_.data() + i * cols_;
    return wide_.data() + i * cols_;
  }
  const void* data() const { return row(0); }
  double At(int64_t i, int64_t j) const { return wide_[i * cols_ + j]; }

 private:
  const DType dtype_;
  const int64_t cols_;
  std::vector<float> wide_;
  std::vector<BFloat16> narrow_;
};

// [rows, cols] weights inside a larger tensor: `left` columns precede and
// `right` columns follow each row, `top` rows precede, all of them NaN, so that
// a read outside of the matrix shows. An FP8 tensor has scales per 128 x 128
// block of the whole tensor and rows that take every block row in turn.
class TestWeight {
 public:
  struct Shape {
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t left = 0;
    int64_t right = 0;
    int64_t top = 0;
  };

  TestWeight(DType dtype, const Shape& shape, uint32_t seed) {
    const int64_t stride = shape.left + shape.cols + shape.right;
    const int64_t element = static_cast<int64_t>(SizeOf(dtype));
    bytes_.assign((shape.top + shape.rows) * stride * element, 0xff);
    view_.dtype = dtype;
    view_.rows = shape.rows;
    view_.cols = shape.cols;
    view_.row_stride = stride;
    char* first = reinterpret_cast<char*>(bytes_.data()) +
                  (shape.top * stride + shape.left) * element;
    view_.data = first;
    if (dtype == DType::kFloat8E4M3) {
      view_.scale_cols = (stride + 127) / 128;
      view_.scale_col_offset = shape.left;
      for (int64_t i = 0; i < 3 * view_.scale_cols; ++i) {
        scales_.push_back(0.5f + std::abs(TestValue(seed + 1, i, 0)));
      }
      for (int64_t i = 0; i < shape.rows; ++i) {
        row_scale_.push_back(static_cast<int32_t>(i % 3));
      }
      view_.scales = scales_.data();
      view_.row_scale = row_scale_.data();
    }
    for (int64_t i = 0; i < shape.rows; ++i) {
      for (int64_t j = 0; j < shape.cols; ++j) {
        Put(first + (i * stride + j) * element, TestValue(seed, i, j));
      }
    }
  }

  const WeightMatrix& view() const { return view_; }

  // The value of element (i, j), in double.
  double At(int64_t i, int64_t j) const {
    const int64_t at = i * view_.row_stride + j;
    switch (view_.dtype) {
      case DType::kBFloat16:
        return ToFloat(static_cast<const BFloat16*>(view_.data)[at]);
      case DType::kFloat8E4M3: {
        const int64_t block = row_scale_[i] * view_.scale_cols +
                              (view_.scale_col_offset + j) / 128;
        return static_cast<double>(
                   ToFloat(static_cast<const Float8E4M3*>(view_.data)[at])) *
               scales_[block];
      }
      default:
        return static_cast<const float*>(view_.data)[at];
    }
  }

 private:
  void Put(void* to, float value) {
    if (view_.dtype == DType::kBFloat16) {
      const BFloat16 narrow = ToBFloat16(value);
      std::memcpy(to, &narrow, sizeof(narrow));
    } else if (view_.dtype == DType::kFloat8E4M3) {
      // Scaled up, so that all exponents and some subnormals occur.
      const Float8E4M3 narrow = ToFloat8E4M3(value * value * value * 400);
      std::memcpy(to, &narrow, sizeof(narrow));
    } else {
      std::memcpy(to, &value, sizeof(value));
    }
  }

  WeightMatrix view_;
  std::vector<unsigned char> bytes_;
  std::vector<float> scales_;
  std::vector<int32_t> row_scale_;
};

// x_i . w_n in double, and how far an fp32 sum of its products may be from it:
// each of the cols additions rounds by half an fp32 ulp of a partial sum, the
// errors add like a random walk, and no partial sum exceeds the sum of absolute
// products. An FP8 weight times its scale rounds once more.
struct ExactDot {
  double value = 0;
  double tolerance = 0;
};

inline ExactDot Dot(const TestRows& x, int64_t i, const TestWeight& w,
                    int64_t n) {
  ExactDot dot;
  double absolute = 0;
  for (int64_t j = 0; j < w.view().cols; ++j) {
    const double product = x.At(i, j) * w.At(n, j);
    dot.value += product;
    absolute += std::abs(product);
  }
  dot.tolerance =
      0x1p-24 * (std::sqrt(static_cast<double>(w.view().cols)) + 2) * absolute;
  return dot;
}

}  // namespace ring
