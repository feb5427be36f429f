#include "worker/model/dummy_weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/strings/match.h"
#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"
#include "kernels/weights/block_quantize.h"
#include "kernels/weights/random_weights.h"
#include "worker/model/slice_fill.h"

namespace ring {
namespace {

constexpr int64_t kTaskBytes = int64_t{4} << 20;
// On a device: large enough to fill it, small enough to leave room.
constexpr int64_t kDeviceTaskBytes = int64_t{256} << 20;

struct Distribution {
  double mean = 0;
  double deviation = 0;
};

Distribution DistributionOf(const TensorInfo& tensor) {
  const absl::string_view name = tensor.name;
  const double inputs = static_cast<double>(tensor.shape.back());
  if (absl::EndsWith(name, "norm.weight")) return {1, 0.1};
  if (absl::EndsWith(name, "expert_bias")) return {0, 0.001};
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

// `out` lies where the op runs.
RandomWeightsArgs DrawsOf(const TensorInfo& tensor, const SliceSource& source,
                          uint64_t seed, void* out) {
  const Distribution distribution = DistributionOf(tensor);
  RandomWeightsArgs args;
  args.key = HashOf(tensor.name) ^ seed * 0x9e3779b97f4a7c15;
  args.mean = distribution.mean;
  args.deviation = distribution.deviation;
  args.tensor_cols = tensor.shape.back();
  args.row_begin = source.rows.begin;
  args.rows = source.rows.size();
  args.col_begin = source.cols.begin;
  args.cols = source.cols.size();
  args.out = out;
  args.dtype = *ToDType(tensor.dtype);
  return args;
}

// A piece of a slice that one thread makes.
struct MakeUpTask {
  const TensorSlice* slice = nullptr;
  SliceRange rows;  // rows of the tensor, or block rows for kQuantize
};

std::vector<MakeUpTask> CutIntoTasks(const LoadPlan& plan, int64_t task_bytes) {
  std::vector<MakeUpTask> tasks;
  for (const TensorSlice& slice : plan.slices()) {
    const bool quantize = slice.fill == TensorSlice::Fill::kQuantize;
    const SliceRange rows =
        quantize ? SliceRange{0, CountBlockRows(slice)} : slice.rows;
    const int64_t row_bytes = SourceOf(slice).cols.size() *
                              int64_t{sizeof(float)} *
                              (quantize ? kScaleBlock : 1);
    const int64_t step = std::max<int64_t>(task_bytes / row_bytes, 1);
    for (int64_t row = rows.begin; row < rows.end; row += step) {
      tasks.push_back({&slice, {row, std::min(row + step, rows.end)}});
    }
  }
  return tasks;
}

int64_t MakeTask(const MakeUpTask& task, uint64_t seed, std::byte* memory) {
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
    cpu::QuantizeBlocks(BlockRowQuantization(
        slice, task.rows.begin, task.rows.end, staging.get(), memory));
  } else {
    Widen(staging.get(), dtype, count,
          reinterpret_cast<float*>(memory + slice.dest));
  }
  return bytes;
}

void CopyWidened(const TensorSlice& slice, uint64_t seed, Backend* backend,
                 std::byte* to) {
  const DType dtype = *ToDType(slice.tensor->dtype);
  const int64_t count = slice.rows.size() * slice.cols.size();
  std::vector<std::byte> stored(static_cast<size_t>(count) * SizeOf(dtype));
  MakeUpTensor(*slice.tensor, {slice.rows, slice.cols}, seed, stored.data());
  std::vector<float> values(static_cast<size_t>(count));
  Widen(stored.data(), dtype, count, values.data());
  backend->CopyToDevice(to, values.data(), count * int64_t{sizeof(float)});
  backend->Synchronize();
}

}  // namespace

void MakeUpTensor(const TensorInfo& tensor, const SliceSource& source,
                  uint64_t seed, std::byte* out) {
  cpu::RandomWeights(DrawsOf(tensor, source, seed, out));
}

void MakeUpSlices(const LoadPlan& plan, uint64_t seed,
                  const LoadOptions& options, std::byte* memory) {
  const std::vector<MakeUpTask> tasks = CutIntoTasks(plan, kTaskBytes);
  const absl::Status status = RunLoadTasks(
      "making up weights", static_cast<int64_t>(tasks.size()),
      plan.read_bytes(), options, [&](int64_t i) -> absl::StatusOr<int64_t> {
        return MakeTask(tasks[i], seed, memory);
      });
  RING_CHECK(status.ok()) << status.ToString();
}

absl::Status MakeUpSlicesOn(const LoadPlan& plan, uint64_t seed,
                            Backend* backend, std::byte* memory,
                            Progress* progress) {
  RING_ASSIGN_OR_RETURN(const std::unique_ptr<DeviceBuffer> staging,
                        backend->Allocate(kDeviceTaskBytes));
  for (const MakeUpTask& task : CutIntoTasks(plan, kDeviceTaskBytes)) {
    const TensorSlice& slice = *task.slice;
    switch (slice.fill) {
      case TensorSlice::Fill::kCopy: {
        const SliceSource source = {task.rows, slice.cols};
        const RandomWeightsArgs draws = DrawsOf(
            *slice.tensor, source, seed,
            memory + slice.dest +
                (task.rows.begin - slice.rows.begin) * slice.cols.size() *
                    static_cast<int64_t>(
                        SizeOf(*ToDType(slice.tensor->dtype))));
        backend->RandomWeights(draws);
        break;
      }
      case TensorSlice::Fill::kQuantize: {
        const SliceSource source =
            BlockRowSource(slice, task.rows.begin, task.rows.end);
        const RandomWeightsArgs draws =
            DrawsOf(*slice.tensor, source, seed, staging->data());
        RING_CHECK_LE(
            draws.rows * draws.cols * static_cast<int64_t>(SizeOf(draws.dtype)),
            staging->bytes())
            << slice.tensor->name;
        backend->RandomWeights(draws);
        backend->QuantizeBlocks(BlockRowQuantization(
            slice, task.rows.begin, task.rows.end, staging->data(), memory));
        break;
      }
      case TensorSlice::Fill::kWiden:
        // Vectors: too small for a device to care.
        CopyWidened(slice, seed, backend, memory + slice.dest);
        break;
    }
    if (progress != nullptr) progress->Tick();
  }
  backend->Synchronize();
  return absl::OkStatus();
}

}  // namespace ring
