#include "worker/model/checkpoint_reader.h"

#include <memory>
#include <vector>

#include "kernels/base/status_macros.h"
#include "worker/model/read_tasks.h"
#include "worker/model/slice_fill.h"

namespace ring {
namespace {

absl::StatusOr<int64_t> ReadRun(const Checkpoint& checkpoint,
                                const ReadTask& task) {
  std::vector<iovec> parts;
  int64_t bytes = 0;
  for (const Extent& extent : task.run) {
    parts.push_back({extent.dest, static_cast<size_t>(extent.bytes)});
    bytes += extent.bytes;
  }
  RING_RETURN_IF_ERROR(
      checkpoint.files()[task.file].ReadAt(task.offset, absl::MakeSpan(parts)));
  return bytes;
}

absl::StatusOr<int64_t> ReadAndQuantize(const Checkpoint& checkpoint,
                                        const ReadTask& task,
                                        std::byte* memory) {
  const TensorSlice& slice = *task.quantize;
  const SliceSource source =
      BlockRowSource(slice, task.block_rows.begin, task.block_rows.end);
  const auto staging = std::make_unique_for_overwrite<std::byte[]>(
      static_cast<size_t>(task.bytes));
  RING_ASSIGN_OR_RETURN(
      const int64_t bytes,
      ReadRowSegments(checkpoint,
                      {slice.tensor, source.rows, source.cols, staging.get()}));
  cpu::QuantizeBlocks(BlockRowQuantization(slice, task.block_rows.begin,
                                           task.block_rows.end, staging.get(),
                                           memory));
  return bytes;
}

}  // namespace

absl::StatusOr<int64_t> ReadSlices(const LoadPlan& plan,
                                   const Checkpoint& checkpoint,
                                   const LoadOptions& options,
                                   std::byte* memory) {
  const ReadTaskList list(plan, memory);
  const std::vector<ReadTask>& tasks = list.tasks();
  std::vector<int64_t> task_bytes(tasks.size(), 0);
  RING_RETURN_IF_ERROR(RunLoadTasks(
      "reading weights", static_cast<int64_t>(tasks.size()), plan.read_bytes(),
      options, [&](int64_t i) -> absl::StatusOr<int64_t> {
        const ReadTask& task = tasks[i];
        auto bytes =
            task.quantize != nullptr ? ReadAndQuantize(checkpoint, task, memory)
            : task.run.empty() ? ReadRowSegments(checkpoint, task.segments)
                               : ReadRun(checkpoint, task);
        if (bytes.ok()) task_bytes[i] = *bytes;
        return bytes;
      }));
  for (const auto& [slice, source] : list.vectors()) {
    Widen(source, *ToDType(slice->tensor->dtype), slice->cols.size(),
          reinterpret_cast<float*>(memory + slice->dest));
  }
  int64_t total = 0;
  for (int64_t bytes : task_bytes) total += bytes;
  return total;
}

}  // namespace ring
