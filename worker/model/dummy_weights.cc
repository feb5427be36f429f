#include "worker/model/dummy_weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/strings/match.h"
#include "kernels/base/check.h"
#include "kernels/base/random.h"
#include "worker/model/load_tasks.h"
#include "worker/model/slice_fill.h"

namespace ring {
namespace {

// Sums of two bytes: 0 to 510, symmetric around 255.
constexpr int kLevels = 511;
// sqrt(2 * (256^2 - 1) / 12), the standard deviation of such a sum.
constexpr double kSumDeviation = 104.51076;
// Elements that one Philox block gives.
constexpr int64_t kPerBlock = 8;
constexpr int64_t kTaskBytes = int64_t{4} << 20;

struct Distribution {
  double mean = 0;
  double deviation = 0;
};

Distribution DistributionOf(const TensorInfo& tensor) {
  const absl::string_view name = tensor.name;
  const double inputs = static_cast<double>(tensor.shape.back());
  if (absl::EndsWith(name, "norm.weight")) return {1, 0.1};
  if (absl::EndsWith(name, "expert_bias")) return {0, 0.02};
  if (absl::EndsWith(name, "word_embeddings.weight")) return {0, 1};
  if (absl::EndsWith(name, "mlp.gate.weight")) {
    return {0, 1.5 / std::sqrt(inputs)};
  }
  return {0, 1 / std::sqrt(inputs)};
}

// FNV-1a, 64 bits.
uint64_t HashOf(absl::string_view text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (unsigned char c : text) hash = (hash ^ c) * 0x100000001b3;
  return hash;
}

// The draws of one tensor by element number, through a table of all values a
// draw can have.
template <typename Element>
class Draws {
 public:
  Draws(uint64_t key, const std::array<Element, kLevels>& values)
      : key_({static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)}),
        values_(values) {}

  // Elements [begin, begin + count) of the whole tensor.
  void Fill(int64_t begin, int64_t count, Element* out) const {
    int64_t skip = begin % kPerBlock;
    for (int64_t block = begin / kPerBlock; count > 0; ++block) {
      const std::array<uint32_t, 4> words =
          Philox4x32({static_cast<uint32_t>(block),
                      static_cast<uint32_t>(block >> 32), 0, 0},
                     key_);
      const int64_t last = std::min(kPerBlock, skip + count);
      for (int64_t i = skip; i < last; ++i) {
        const uint32_t bits = words[i / 2] >> (16 * (i % 2));
        *out++ = values_[(bits & 0xff) + (bits >> 8 & 0xff)];
      }
      count -= last - skip;
      skip = 0;
    }
  }

 private:
  const std::array<uint32_t, 2> key_;
  const std::array<Element, kLevels>& values_;
};

template <typename Element>
void FillSource(const TensorInfo& tensor, const SliceSource& source,
                uint64_t key, const std::array<Element, kLevels>& values,
                std::byte* out) {
  const Draws<Element> draws(key, values);
  auto* elements = reinterpret_cast<Element*>(out);
  const int64_t width = tensor.shape.back();
  for (int64_t row = source.rows.begin; row < source.rows.end; ++row) {
    draws.Fill(row * width + source.cols.begin, source.cols.size(), elements);
    elements += source.cols.size();
  }
}

// A piece of a slice that one thread makes.
struct MakeUpTask {
  const TensorSlice* slice = nullptr;
  SliceRange rows;  // rows of the tensor, or block rows for kQuantize
};

std::vector<MakeUpTask> CutIntoTasks(const LoadPlan& plan) {
  std::vector<MakeUpTask> tasks;
  for (const TensorSlice& slice : plan.slices()) {
    const bool quantize = slice.fill == TensorSlice::Fill::kQuantize;
    const SliceRange rows =
        quantize ? SliceRange{0, CountBlockRows(slice)} : slice.rows;
    const int64_t row_bytes = SourceOf(slice).cols.size() *
                              int64_t{sizeof(float)} *
                              (quantize ? kScaleBlock : 1);
    const int64_t step = std::max<int64_t>(kTaskBytes / row_bytes, 1);
    for (int64_t row = rows.begin; row < rows.end; row += step) {
      tasks.push_back({&slice, {row, std::min(row + step, rows.end)}});
    }
  }
  return tasks;
}

int64_t RunTask(const MakeUpTask& task, uint64_t seed, std::byte* memory) {
  const TensorSlice& slice = *task.slice;
  const bool quantize = slice.fill == TensorSlice::Fill::kQuantize;
  const SliceSource source =
      quantize ? BlockRowSource(slice, task.rows.begin, task.rows.end)
               : SliceSource{task.rows, slice.cols};
  const DType dtype = *ToDType(slice.tensor->dtype);
  const int64_t count = source.rows.size() * source.cols.size();
  const int64_t bytes = count * static_cast<int64_t>(SizeOf(dtype));
  if (slice.fill == TensorSlice::Fill::kCopy) {
    const int64_t row_bytes =
        slice.cols.size() * static_cast<int64_t>(SizeOf(dtype));
    MakeUpTensor(*slice.tensor, source, seed,
                 memory + slice.dest +
                     (source.rows.begin - slice.rows.begin) * row_bytes);
    return bytes;
  }
  const auto staging =
      std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(bytes));
  MakeUpTensor(*slice.tensor, source, seed, staging.get());
  if (quantize) {
    QuantizeBlockRows(slice, task.rows.begin, task.rows.end, staging.get(),
                      memory);
  } else {
    Widen(staging.get(), dtype, count,
          reinterpret_cast<float*>(memory + slice.dest));
  }
  return bytes;
}

}  // namespace

void MakeUpTensor(const TensorInfo& tensor, const SliceSource& source,
                  uint64_t seed, std::byte* out) {
  const Distribution distribution = DistributionOf(tensor);
  const uint64_t key = HashOf(tensor.name) ^ seed * 0x9e3779b97f4a7c15;
  std::array<float, kLevels> values;
  std::array<BFloat16, kLevels> rounded;
  for (int i = 0; i < kLevels; ++i) {
    values[i] = static_cast<float>(
        distribution.mean + distribution.deviation * (i - 255) / kSumDeviation);
    rounded[i] = ToBFloat16(values[i]);
  }
  const DType dtype = *ToDType(tensor.dtype);
  if (dtype == DType::kFloat32) {
    FillSource(tensor, source, key, values, out);
  } else {
    RING_CHECK(dtype == DType::kBFloat16) << tensor.name;
    FillSource(tensor, source, key, rounded, out);
  }
}

void MakeUpSlices(const LoadPlan& plan, uint64_t seed, int threads,
                  std::byte* memory, Progress* progress) {
  const std::vector<MakeUpTask> tasks = CutIntoTasks(plan);
  const absl::Status status = RunLoadTasks(
      "making up weights", static_cast<int64_t>(tasks.size()),
      plan.read_bytes(), threads, [&](int64_t i) -> absl::StatusOr<int64_t> {
        const int64_t bytes = RunTask(tasks[i], seed, memory);
        if (progress != nullptr) progress->Tick();
        return bytes;
      });
  RING_CHECK(status.ok()) << status.ToString();
}

}  // namespace ring
