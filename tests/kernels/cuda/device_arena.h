// Inputs and outputs of one op on one backend. A test writes its case once, as
// a function of the arena, and runs it on the CPU and on the GPU.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/base/check.h"
#include "kernels/step_rows.h"
#include "tests/kernels/linear/test_matrix.h"
#include "tests/kernels/tensor_support.h"

namespace ring {

// Owns device memory until it goes out of scope.
class DeviceArena {
 public:
  explicit DeviceArena(Backend* backend) : backend_(backend) {}

  Backend& backend() { return *backend_; }

  // Bytes of 0xff: NaN as bf16 and fp32, so that what an op leaves out shows.
  template <typename T>
  T* Make(int64_t n) {
    return Put(std::vector<T>(
        n, FromBytes<T>(std::vector<unsigned char>(sizeof(T), 0xff))));
  }
  void* MakeBytes(int64_t bytes) { return Make<unsigned char>(bytes); }

  template <typename T>
  T* Put(const std::vector<T>& values) {
    return reinterpret_cast<T*>(
        PutBytes(values.data(), values.size() * sizeof(T), 0));
  }
  void* Put(Tensor tensor) {
    return PutBytes(tensor.data(), tensor.size() * SizeOf(tensor.dtype()), 0);
  }
  void* Put(const TestRows& rows, int64_t n, int64_t cols, DType dtype) {
    return PutBytes(rows.data(), n * cols * SizeOf(dtype), 0);
  }
  // Keeps the alignment that the matrix has on the host.
  WeightMatrix Put(const TestWeight& weight) {
    WeightMatrix w = weight.view();
    if (w.empty()) return w;
    const int64_t element = static_cast<int64_t>(SizeOf(w.dtype));
    w.data = PutBytes(w.data, ((w.rows - 1) * w.row_stride + w.cols) * element,
                      reinterpret_cast<uintptr_t>(w.data) % 16);
    if (w.scales != nullptr) {
      w.scales = Put(std::vector<float>(w.scales, w.scales + 3 * w.scale_cols));
      w.row_scale =
          Put(std::vector<int32_t>(w.row_scale, w.row_scale + w.rows));
    }
    return w;
  }
  StepSegments Put(const StepSegments& s) {
    StepSegments d = s;
    for (auto member : {&StepSegments::row_begin, &StepSegments::row_count,
                        &StepSegments::position, &StepSegments::state_in,
                        &StepSegments::state_out, &StepSegments::page_row}) {
      d.*member =
          Put(std::vector<int32_t>(s.*member, s.*member + s.num_segments));
    }
    return d;
  }

  template <typename T>
  std::vector<T> Get(const T* data, int64_t n) {
    std::vector<T> values(n);
    backend_->CopyToHost(values.data(), data, n * sizeof(T));
    backend_->Synchronize();
    return values;
  }
  std::vector<float> GetFloats(const void* data, int64_t n, DType dtype) {
    if (dtype == DType::kFloat32) {
      return Get(static_cast<const float*>(data), n);
    }
    std::vector<float> wide;
    for (BFloat16 x : Get(static_cast<const BFloat16*>(data), n)) {
      wide.push_back(ToFloat(x));
    }
    return wide;
  }

 private:
  template <typename T>
  static T FromBytes(const std::vector<unsigned char>& bytes) {
    T value;
    std::memcpy(&value, bytes.data(), sizeof(T));
    return value;
  }
  char* PutBytes(const void* from, int64_t bytes, int64_t misalignment) {
    auto buffer = backend_->Allocate(bytes + misalignment);
    RING_CHECK(buffer.ok()) << buffer.status().ToString();
    char* const to = static_cast<char*>((*buffer)->data()) + misalignment;
    if (bytes > 0) backend_->CopyToDevice(to, from, bytes);
    backend_->Synchronize();
    buffers_.push_back(*std::move(buffer));
    return to;
  }

  Backend* const backend_;
  std::vector<std::unique_ptr<DeviceBuffer>> buffers_;
};

// The backends that are compared. Made at first use, never freed: CUDA is gone
// when static objects are destroyed.
Backend* TestCpu();
Backend* TestGpu();

// What separates two orders of the same fp32 additions; and one more rounding
// to bf16 that falls to the other side.
inline double Tolerance(DType out) {
  return out == DType::kFloat32 ? 2e-5 : 4e-3;
}

// Runs `run`, which returns floats, on both and compares by relative error.
// NaN never passes.
template <typename Case>
void ExpectSame(const Case& run, double tolerance) {
  DeviceArena cpu(TestCpu());
  DeviceArena gpu(TestGpu());
  const std::vector<float> expected = run(cpu);
  const std::vector<float> actual = run(gpu);
  ASSERT_EQ(actual.size(), expected.size());
  EXPECT_LE(RelativeL2(actual, expected, expected.size()), tolerance);
}

}  // namespace ring
