// The reads that fill a shard: large, in file order, a few bytes of each file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/model/load_plan.h"
#include "worker/model_files/checkpoint.h"

namespace ring {

inline constexpr int64_t kMaxReadBytes = int64_t{16} << 20;

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
  int64_t bytes = 0;  // to be read
};

// Turns the slices of a plan into tasks of up to kMaxReadBytes, one block row
// of a wide matrix at least, in file order. Vectors to widen are read into a
// staging area beside the others, so that a layer's small tensors come in one
// read. Immutable.
class ReadTaskList {
 public:
  // `memory`: where the shard's bytes will be named, plan.memory_bytes();
  // nothing is written here. `plan` outlives the list.
  ReadTaskList(const LoadPlan& plan, std::byte* memory);

  const std::vector<ReadTask>& tasks() const { return tasks_; }

  // Vectors that lie in the staging area after all reads: Widen them to their
  // slice's place.
  const std::vector<std::pair<const TensorSlice*, const std::byte*>>& vectors()
      const {
    return vectors_;
  }

 private:
  void Add(const TensorSlice& slice);
  void AddRowSegments(const TensorSlice& slice, std::byte* dest);
  void AddBlockRows(const TensorSlice& slice);
  void JoinExtents();

  std::byte* const memory_;
  std::vector<std::byte> staging_;
  int64_t staged_bytes_ = 0;
  std::vector<std::pair<const TensorSlice*, const std::byte*>> vectors_;
  std::vector<Extent> extents_;
  std::vector<ReadTask> tasks_;
};

// Bytes of one element of a stored tensor.
int64_t ElementBytes(const TensorInfo& tensor);

// Reads rows x cols of a tensor into `dest`, rows packed, and returns their
// bytes. DATA_LOSS names the file and the place.
absl::StatusOr<int64_t> ReadRowSegments(const Checkpoint& checkpoint,
                                        const RowSegments& part);

}  // namespace ring
