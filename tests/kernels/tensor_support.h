// What the op tests share: seeded random tensors, storage in either activation
// dtype, and step segments built row by row.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/step_rows.h"

namespace ring {

// Normally distributed values; the same for the same seed.
inline std::vector<float> RandomFloats(int64_t n, uint32_t seed,
                                       float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> x(n);
  for (float& value : x) value = normal(generator);
  return x;
}

// A tensor of fp32 or bf16 elements.
class Tensor {
 public:
  Tensor(DType dtype, const std::vector<float>& values)
      : dtype_(dtype), bytes_(values.size() * SizeOf(dtype)) {
    for (size_t i = 0; i < values.size(); ++i) Set(i, values[i]);
  }

  DType dtype() const { return dtype_; }
  void* data() { return bytes_.data(); }
  int64_t size() const { return bytes_.size() / SizeOf(dtype_); }

  void Set(int64_t i, float value) {
    if (dtype_ == DType::kFloat32) {
      reinterpret_cast<float*>(bytes_.data())[i] = value;
    } else {
      reinterpret_cast<BFloat16*>(bytes_.data())[i] = ToBFloat16(value);
    }
  }
  float operator[](int64_t i) const {
    if (dtype_ == DType::kFloat32) {
      return reinterpret_cast<const float*>(bytes_.data())[i];
    }
    return ToFloat(reinterpret_cast<const BFloat16*>(bytes_.data())[i]);
  }

 private:
  DType dtype_;
  std::vector<char> bytes_;
};

// The segments of a step, owned. Decode segments must be added first.
class SegmentList {
 public:
  struct Segment {
    int row_begin = 0;
    int row_count = 0;
    int position = 0;
    int state_in = -1;
    int state_out = -1;
    int page_row = -1;
  };

  void Add(const Segment& s, bool decode = false) {
    row_begin_.push_back(s.row_begin);
    row_count_.push_back(s.row_count);
    position_.push_back(s.position);
    state_in_.push_back(s.state_in);
    state_out_.push_back(s.state_out);
    page_row_.push_back(s.page_row);
    if (decode) ++num_decode_;
  }
  void AddPadding(bool decode = false) { Add({}, decode); }

  StepSegments View() const {
    StepSegments view;
    view.num_segments = static_cast<int>(row_begin_.size());
    view.num_decode_segments = num_decode_;
    view.row_begin = row_begin_.data();
    view.row_count = row_count_.data();
    view.position = position_.data();
    view.state_in = state_in_.data();
    view.state_out = state_out_.data();
    view.page_row = page_row_.data();
    return view;
  }

 private:
  std::vector<int32_t> row_begin_, row_count_, position_, state_in_, state_out_,
      page_row_;
  int num_decode_ = 0;
};

// sqrt(sum (a - b)^2 / sum b^2), or 0 if both are empty or zero.
template <typename A, typename B>
double RelativeL2(const A& actual, const B& expected, int64_t n) {
  double error = 0;
  double norm = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double difference = double{actual[i]} - double{expected[i]};
    error += difference * difference;
    norm += double{expected[i]} * double{expected[i]};
  }
  return error == 0 ? 0 : std::sqrt(error / norm);
}

}  // namespace ring
