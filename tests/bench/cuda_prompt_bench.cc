// Products of prompt rows on the GPU against its packaged ones. Run by hand;
// prints one table. Every line is the median of 7 runs of at least 20 ms, timed
// by the host's clock. Counted are the products' operations; time is that of
// the whole op: sorting, copying, quantising and summing are included. Values
// are uniform in (-1, 1), experts are drawn at random, distinct in a row.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "kernels/backend_factory.h"
#include "kernels/base/check.h"
#include "kernels/grouped_ffn/grouped_ffn.h"
#include "kernels/linear/linear.h"
#include "tests/bench/device_gemm.h"

namespace ring {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kHidden = 4096;
constexpr int64_t kInter = 1024;
constexpr int kExperts = 256;
constexpr int kTopK = 8;

class Bench {
 public:
  Bench() {
    bf16_ceiling_ = PackagedBf16Tflops();
    e4m3_ceiling_ = PackagedE4M3Tflops();
    auto backend = MakeBackend("cuda", 1);
    RING_CHECK(backend.ok()) << backend.status().ToString();
    gpu_ = *std::move(backend);
    std::mt19937 generator(1);
    std::uniform_real_distribution<float> uniform(-1, 1);
    constexpr int kPattern = 1 << 22;
    for (int i = 0; i < kPattern; ++i) {
      const float value = uniform(generator);
      bf16_.push_back(ToBFloat16(value));
      e4m3_.push_back(ToFloat8E4M3(value));
    }
    std::printf("%s: packaged 8192^3 bf16 %.0f TFLOP/s, e4m3 %.0f TFLOP/s\n",
                gpu_->description(), bf16_ceiling_, e4m3_ceiling_);
    std::printf("%-36s %9s %9s %9s\n", "op", "us", "TFLOP/s", "% packaged");
  }

  Backend& gpu() { return *gpu_; }

  void* Take(int64_t bytes) {
    auto buffer = gpu_->Allocate(bytes);
    RING_CHECK(buffer.ok()) << buffer.status().ToString();
    buffers_.push_back(*std::move(buffer));
    return buffers_.back()->data();
  }
  void Fill(void* to, DType dtype, int64_t count) {
    const bool e4m3 = dtype == DType::kFloat8E4M3;
    const int64_t bytes = count * static_cast<int64_t>(SizeOf(dtype));
    const void* const from =
        e4m3 ? static_cast<const void*>(e4m3_.data()) : bf16_.data();
    const int64_t step =
        static_cast<int64_t>(e4m3_.size() * (e4m3 ? 1 : sizeof(BFloat16)));
    char* const data = static_cast<char*>(to);
    gpu_->CopyToDevice(data, from, std::min(bytes, step));
    for (int64_t at = step; at < bytes; at += step) {
      gpu_->Copy(data + at, data, std::min(step, bytes - at));
    }
    gpu_->Synchronize();
  }
  template <typename T>
  T* Put(const std::vector<T>& values) {
    void* const data = Take(values.size() * sizeof(T));
    gpu_->CopyToDevice(data, values.data(), values.size() * sizeof(T));
    gpu_->Synchronize();
    return static_cast<T*>(data);
  }
  void* Activations(int64_t count) {
    void* const data = Take(count * 2);
    Fill(data, DType::kBFloat16, count);
    return data;
  }
  void Free() { buffers_.clear(); }

  // `count` matrices at equal distances.
  std::vector<WeightMatrix> Matrices(DType dtype, int64_t rows, int64_t cols,
                                     int count) {
    const int64_t bytes = rows * cols * static_cast<int64_t>(SizeOf(dtype));
    char* const data = static_cast<char*>(Take(bytes * count));
    Fill(data, dtype, rows * cols * count);
    WeightMatrix w;
    w.dtype = dtype;
    w.rows = rows;
    w.cols = w.row_stride = cols;
    if (dtype == DType::kFloat8E4M3) {
      w.scale_cols = cols / kScaleBlock;
      w.scale_row_run = kScaleBlock;
      w.scales =
          Put(std::vector<float>(rows / kScaleBlock * w.scale_cols, 0.01f));
      std::vector<int32_t> row_scale(rows);
      for (int64_t i = 0; i < rows; ++i) {
        row_scale[i] = static_cast<int32_t>(i / kScaleBlock);
      }
      w.row_scale = Put(row_scale);
    }
    std::vector<WeightMatrix> matrices(count, w);
    for (int i = 0; i < count; ++i) matrices[i].data = data + i * bytes;
    return matrices;
  }

  void Measure(const std::string& what, DType dtype, double operations,
               absl::FunctionRef<void()> op) {
    const auto run = [&](int repeats) {
      gpu_->Synchronize();
      const Clock::time_point start = Clock::now();
      for (int i = 0; i < repeats; ++i) op();
      gpu_->Synchronize();
      return std::chrono::duration<double, std::micro>(Clock::now() - start)
          .count();
    };
    run(2);
    const int repeats = 1 + static_cast<int>(20000 / run(1));
    std::vector<double> samples;
    for (int i = 0; i < 7; ++i) samples.push_back(run(repeats) / repeats);
    std::sort(samples.begin(), samples.end());
    const double us = samples[samples.size() / 2];
    const double rate = operations / us * 1e-6;
    const double ceiling =
        dtype == DType::kFloat8E4M3 ? e4m3_ceiling_ : bf16_ceiling_;
    std::printf("%-36s %9.1f %9.1f %9.1f\n",
                absl::StrCat(what, " ", Name(dtype)).c_str(), us, rate,
                100 * rate / ceiling);
    Free();
  }

 private:
  std::unique_ptr<Backend> gpu_;
  std::vector<BFloat16> bf16_;
  std::vector<Float8E4M3> e4m3_;
  std::vector<std::unique_ptr<DeviceBuffer>> buffers_;
  double bf16_ceiling_ = 0;  // TFLOP/s
  double e4m3_ceiling_ = 0;
};

void Moe(Bench* bench, DType dtype, int64_t rows) {
  const auto gates = bench->Matrices(dtype, kInter, kHidden, kExperts);
  const auto ups = bench->Matrices(dtype, kInter, kHidden, kExperts);
  const auto downs = bench->Matrices(dtype, kHidden, kInter, kExperts);
  std::vector<GatedMlpWeights> experts;
  for (int e = 0; e < kExperts; ++e) {
    experts.push_back({gates[e], ups[e], downs[e]});
  }
  std::mt19937 generator(3);
  std::vector<int32_t> chosen;
  std::vector<int32_t> all(kExperts);
  for (int e = 0; e < kExperts; ++e) all[e] = e;
  for (int64_t row = 0; row < rows; ++row) {
    std::shuffle(all.begin(), all.end(), generator);
    chosen.insert(chosen.end(), all.begin(), all.begin() + kTopK);
  }
  GroupedFfnArgs args;
  args.x = bench->Activations(rows * kHidden);
  args.x_dtype = DType::kBFloat16;
  args.rows = rows;
  args.top_k = kTopK;
  args.local_experts = bench->Put(chosen);
  args.weights = bench->Put(std::vector<float>(rows * kTopK, 0.3f));
  args.experts = experts;
  args.hidden = kHidden;
  args.y = static_cast<float*>(bench->Take(rows * kHidden * 4));
  args.workspace = bench->Take(GroupedFfnWorkspaceBytes(
      rows, kTopK, kHidden, kInter, args.x_dtype, kExperts));
  bench->Measure(absl::StrCat("moe M=", rows), dtype,
                 6.0 * rows * kTopK * kHidden * kInter,
                 [&] { bench->gpu().GroupedFfn(args); });
}

void Shared(Bench* bench, DType dtype, int64_t rows, int64_t inter) {
  DenseFfnArgs args;
  args.x = bench->Activations(rows * kHidden);
  args.x_dtype = DType::kBFloat16;
  args.rows = rows;
  args.weights = {bench->Matrices(dtype, inter, kHidden, 1)[0],
                  bench->Matrices(dtype, inter, kHidden, 1)[0],
                  bench->Matrices(dtype, kHidden, inter, 1)[0]};
  args.y = static_cast<float*>(bench->Take(rows * kHidden * 4));
  args.accumulate = true;
  args.workspace =
      bench->Take(DenseFfnWorkspaceBytes(rows, inter, args.x_dtype));
  bench->Measure(absl::StrCat("dense ffn ", inter, " M=", rows), dtype,
                 6.0 * rows * kHidden * inter,
                 [&] { bench->gpu().DenseFfn(args); });
}

void Projection(Bench* bench, DType dtype, int64_t rows, int64_t out,
                DType y_dtype) {
  LinearArgs args;
  args.x = bench->Activations(rows * kHidden);
  args.x_dtype = DType::kBFloat16;
  args.rows = rows;
  args.weight = bench->Matrices(dtype, out, kHidden, 1)[0];
  args.y = bench->Take(rows * out * 4);
  args.y_dtype = y_dtype;
  bench->Measure(
      absl::StrCat("linear 4096 x ", out, " M=", rows, " ", Name(y_dtype)),
      dtype, 2.0 * rows * kHidden * out, [&] { bench->gpu().Linear(args); });
}

void Main() {
  Bench bench;
  for (DType dtype : {DType::kBFloat16, DType::kFloat8E4M3}) {
    for (int64_t rows : {1024, 4096, 16384, 32768}) Moe(&bench, dtype, rows);
    for (int64_t rows : {4096, 16384}) {
      Shared(&bench, dtype, rows, kInter);
      Projection(&bench, dtype, rows, 12288, DType::kFloat32);
      Projection(&bench, dtype, rows, 12288, DType::kBFloat16);
      Projection(&bench, dtype, rows, 4096, DType::kFloat32);
    }
    Shared(&bench, dtype, 16384, 9216);
  }
}

}  // namespace
}  // namespace ring

int main() { ring::Main(); }
