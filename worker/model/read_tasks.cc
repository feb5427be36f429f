#include "worker/model/read_tasks.h"

#include <algorithm>
#include <tuple>

#include "kernels/base/status_macros.h"
#include "worker/model/slice_fill.h"

namespace ring {
namespace {

// Row segments from this size on are large reads by themselves.
constexpr int64_t kLargeSegmentBytes = int64_t{64} << 10;

int64_t RowBytes(const TensorInfo& tensor) {
  return tensor.shape.back() * ElementBytes(tensor);
}
int64_t OffsetOf(const TensorInfo& tensor, int64_t row, int64_t col) {
  return tensor.offset + row * RowBytes(tensor) + col * ElementBytes(tensor);
}

}  // namespace

int64_t ElementBytes(const TensorInfo& tensor) {
  return static_cast<int64_t>(SizeOf(*ToDType(tensor.dtype)));
}

ReadTaskList::ReadTaskList(const LoadPlan& plan, std::byte* memory)
    : memory_(memory) {
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

void ReadTaskList::Add(const TensorSlice& slice) {
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

void ReadTaskList::AddRowSegments(const TensorSlice& slice, std::byte* dest) {
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
    task.bytes = rows.size() * slice.cols.size() * ElementBytes(tensor);
    dest += task.bytes;
    tasks_.push_back(std::move(task));
  }
}

void ReadTaskList::AddBlockRows(const TensorSlice& slice) {
  const TensorInfo& tensor = *slice.tensor;
  const int64_t block_rows_per_task =
      std::max<int64_t>(kMaxReadBytes / (RowBytes(tensor) * kScaleBlock), 1);
  const int64_t count = CountBlockRows(slice);
  for (int64_t begin = 0; begin < count; begin += block_rows_per_task) {
    ReadTask task;
    task.quantize = &slice;
    task.block_rows = {begin, std::min(begin + block_rows_per_task, count)};
    task.file = tensor.file;
    task.offset =
        OffsetOf(tensor, BlockRowSource(slice, begin, begin + 1).rows.begin, 0);
    const SliceSource source =
        BlockRowSource(slice, task.block_rows.begin, task.block_rows.end);
    task.bytes = source.rows.size() * source.cols.size() * ElementBytes(tensor);
    tasks_.push_back(std::move(task));
  }
}

// Extents that touch in a file become one read; long ones are cut.
void ReadTaskList::JoinExtents() {
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
      task.bytes += head.bytes;
      room -= head.bytes;
      end = head.offset + head.bytes;
      extent.offset += head.bytes;
      extent.dest += head.bytes;
      extent.bytes -= head.bytes;
    }
  }
  flush();
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

}  // namespace ring
