#include "worker/model/checkpoint_reader.h"

#include <algorithm>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"
#include "worker/model/load_tasks.h"
#include "worker/model/slice_fill.h"

namespace ring {
namespace {

constexpr int64_t kMaxReadBytes = int64_t{16} << 20;
// Row segments from this size on are large reads by themselves.
constexpr int64_t kLargeSegmentBytes = int64_t{64} << 10;

// Bytes that follow each other in a file and in memory.
struct Extent {
  int file = 0;
  int64_t offset = 0;
  int64_t bytes = 0;
  std::byte* dest = nullptr;
};

// A slice whose rows are no run of bytes: some rows of it.
struct RowSegments {
  const TensorInfo* tensor = nullptr;
  SliceRange rows;
  SliceRange cols;
  std::byte* dest = nullptr;  // rows packed
};

// One unit of work for a thread: exactly one of the three is filled.
struct ReadTask {
  std::vector<Extent> run;  // without gaps in the file
  RowSegments segments;
  const TensorSlice* quantize = nullptr;  // its block rows
  SliceRange block_rows;

  int file = 0;  // where it begins, to read in file order
  int64_t offset = 0;
};

int64_t ElementBytes(const TensorInfo& tensor) {
  return static_cast<int64_t>(SizeOf(*ToDType(tensor.dtype)));
}
int64_t RowBytes(const TensorInfo& tensor) {
  return tensor.shape.back() * ElementBytes(tensor);
}
int64_t OffsetOf(const TensorInfo& tensor, int64_t row, int64_t col) {
  return tensor.offset + row * RowBytes(tensor) + col * ElementBytes(tensor);
}

absl::StatusOr<int64_t> ReadRowSegments(const Checkpoint& checkpoint,
                                        const RowSegments& part) {
  const TensorInfo& tensor = *part.tensor;
  const ReadOnlyFile& file = checkpoint.files()[tensor.file];
  const int64_t segment = part.cols.size() * ElementBytes(tensor);
  if (segment == RowBytes(tensor)) {
    RING_RETURN_IF_ERROR(
        file.ReadAt(OffsetOf(tensor, part.rows.begin, 0),
                    absl::MakeSpan(part.dest, segment * part.rows.size())));
    return segment * part.rows.size();
  }
  if (segment < kLargeSegmentBytes) {
    file.Prefetch(OffsetOf(tensor, part.rows.begin, part.cols.begin),
                  (part.rows.size() - 1) * RowBytes(tensor) + segment);
  }
  std::byte* dest = part.dest;
  for (int64_t row = part.rows.begin; row < part.rows.end; ++row) {
    RING_RETURN_IF_ERROR(file.ReadAt(OffsetOf(tensor, row, part.cols.begin),
                                     absl::MakeSpan(dest, segment)));
    dest += segment;
  }
  return segment * part.rows.size();
}

// Turns slices into tasks. Vectors to widen are read into a staging area
// beside the others, so that a layer's small tensors come in one read.
class TaskList {
 public:
  TaskList(const LoadPlan& plan, std::byte* memory) : memory_(memory) {
    int64_t staging_bytes = 0;
    for (const TensorSlice& slice : plan.slices()) {
      if (slice.fill != TensorSlice::Fill::kWiden) continue;
      staging_bytes += slice.cols.size() * ElementBytes(*slice.tensor);
    }
    staging_.resize(static_cast<size_t>(staging_bytes));
    for (const TensorSlice& slice : plan.slices()) Add(slice);
    JoinExtents();
    std::sort(tasks_.begin(), tasks_.end(),
              [](const ReadTask& a, const ReadTask& b) {
                return std::tie(a.file, a.offset) < std::tie(b.file, b.offset);
              });
  }

  const std::vector<ReadTask>& tasks() const { return tasks_; }

  // After all reads.
  void WidenVectors() const {
    for (const auto& [slice, source] : vectors_) {
      Widen(source, *ToDType(slice->tensor->dtype), slice->cols.size(),
            reinterpret_cast<float*>(memory_ + slice->dest));
    }
  }

 private:
  void Add(const TensorSlice& slice) {
    const TensorInfo& tensor = *slice.tensor;
    if (slice.fill == TensorSlice::Fill::kQuantize) {
      AddBlockRows(slice);
      return;
    }
    const int64_t bytes =
        slice.rows.size() * slice.cols.size() * ElementBytes(tensor);
    std::byte* dest = memory_ + slice.dest;
    if (slice.fill == TensorSlice::Fill::kWiden) {
      dest = staging_.data() + staged_bytes_;
      staged_bytes_ += bytes;
      vectors_.emplace_back(&slice, dest);
    }
    if (slice.rows.size() == 1 || slice.cols.size() == tensor.shape.back()) {
      extents_.push_back({tensor.file,
                          OffsetOf(tensor, slice.rows.begin, slice.cols.begin),
                          bytes, dest});
    } else {
      AddRowSegments(slice, dest);
    }
  }

  void AddRowSegments(const TensorSlice& slice, std::byte* dest) {
    const TensorInfo& tensor = *slice.tensor;
    const int64_t rows_per_task =
        std::max<int64_t>(kMaxReadBytes / RowBytes(tensor), 1);
    for (int64_t row = slice.rows.begin; row < slice.rows.end;
         row += rows_per_task) {
      const SliceRange rows = {row,
                               std::min(row + rows_per_task, slice.rows.end)};
      ReadTask task;
      task.segments = {&tensor, rows, slice.cols, dest};
      task.file = tensor.file;
      task.offset = OffsetOf(tensor, row, slice.cols.begin);
      tasks_.push_back(std::move(task));
      dest += rows.size() * slice.cols.size() * ElementBytes(tensor);
    }
  }

  void AddBlockRows(const TensorSlice& slice) {
    const TensorInfo& tensor = *slice.tensor;
    const int64_t block_rows_per_task =
        std::max<int64_t>(kMaxReadBytes / (RowBytes(tensor) * kScaleBlock), 1);
    const int64_t count = CountBlockRows(slice);
    for (int64_t begin = 0; begin < count; begin += block_rows_per_task) {
      ReadTask task;
      task.quantize = &slice;
      task.block_rows = {begin, std::min(begin + block_rows_per_task, count)};
      task.file = tensor.file;
      task.offset = OffsetOf(
          tensor, BlockRowSource(slice, begin, begin + 1).rows.begin, 0);
      tasks_.push_back(std::move(task));
    }
  }

  // Extents that touch in a file become one read; long ones are cut.
  void JoinExtents() {
    std::sort(extents_.begin(), extents_.end(),
              [](const Extent& a, const Extent& b) {
                return std::tie(a.file, a.offset) < std::tie(b.file, b.offset);
              });
    ReadTask task;
    int64_t end = -1;
    int64_t room = 0;
    const auto flush = [&] {
      if (!task.run.empty()) tasks_.push_back(std::move(task));
      task = ReadTask();
    };
    for (Extent extent : extents_) {
      while (extent.bytes > 0) {
        if (task.run.empty() || task.file != extent.file ||
            end != extent.offset || room == 0 ||
            task.run.size() == ReadOnlyFile::kMaxParts) {
          flush();
          task.file = extent.file;
          task.offset = extent.offset;
          room = kMaxReadBytes;
        }
        Extent head = extent;
        head.bytes = std::min(extent.bytes, room);
        task.run.push_back(head);
        room -= head.bytes;
        end = head.offset + head.bytes;
        extent.offset += head.bytes;
        extent.dest += head.bytes;
        extent.bytes -= head.bytes;
      }
    }
    flush();
  }

  std::byte* const memory_;
  std::vector<std::byte> staging_;
  int64_t staged_bytes_ = 0;
  std::vector<std::pair<const TensorSlice*, const std::byte*>> vectors_;
  std::vector<Extent> extents_;
  std::vector<ReadTask> tasks_;
};

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
      static_cast<size_t>(source.rows.size() * source.cols.size() *
                          ElementBytes(*slice.tensor)));
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
                                   const Checkpoint& checkpoint, int threads,
                                   std::byte* memory, Progress* progress) {
  const TaskList list(plan, memory);
  const std::vector<ReadTask>& tasks = list.tasks();
  std::vector<int64_t> task_bytes(tasks.size(), 0);
  RING_RETURN_IF_ERROR(RunLoadTasks(
      "reading weights", static_cast<int64_t>(tasks.size()), plan.read_bytes(),
      threads, [&](int64_t i) -> absl::StatusOr<int64_t> {
        const ReadTask& task = tasks[i];
        auto bytes =
            task.quantize != nullptr ? ReadAndQuantize(checkpoint, task, memory)
            : task.run.empty() ? ReadRowSegments(checkpoint, task.segments)
                               : ReadRun(checkpoint, task);
        if (bytes.ok()) task_bytes[i] = *bytes;
        if (progress != nullptr) progress->Tick();
        return bytes;
      }));
  list.WidenVectors();
  int64_t total = 0;
  for (int64_t bytes : task_bytes) total += bytes;
  return total;
}

}  // namespace ring
