// Copies of token rows for the ranks that own their experts: which there are,
// laid out for sending, and their results added up.
#pragma once

#include <cstdint>

namespace ring {

class ThreadPool;

// A row is copied once for every rank that owns one of its experts. Copies
// are numbered by rank, then by row; those for rank r begin after those for
// the ranks before it. Example, 2 ranks, experts 0 and 1 on rank 0, 2 and 3 on
// rank 1:
//
//   row  experts   copy_of    packed: 0: row 0  \ for rank 0
//    0   {1, 3}    {0,  0}            1: row 2  /
//    1   {2, 3}    {-1, 1}            2: row 0  \ for rank 1
//    2   {0, 1}    {1, -1}            3: row 1  /     counts = {2, 2}
struct PlanCopiesArgs {
  const int32_t* experts = nullptr;  // [rows, top_k] global ids
  int64_t rows = 0;
  int top_k = 1;
  const int32_t* rank_of = nullptr;  // [num_experts] owner of each expert
  int num_ranks = 1;

  int64_t* counts = nullptr;  // [num_ranks] copies for each rank
  // [rows, num_ranks] which of the rank's copies is this row's, -1: none.
  int32_t* copy_of = nullptr;
};

// packed[copy] = the copied row, what its experts are called where it goes,
// and their weights.
struct PackCopiesArgs {
  const void* x = nullptr;  // [rows] rows of row_bytes
  int64_t row_bytes = 0;
  const int32_t* experts = nullptr;  // [rows, top_k] global ids
  const float* weights = nullptr;    // [rows, top_k]
  int64_t rows = 0;
  int top_k = 1;
  const int32_t* rank_of = nullptr;      // [num_experts]
  const int32_t* local_index = nullptr;  // [num_experts] number at its owner
  int num_ranks = 1;
  const int64_t* counts = nullptr;   // as planned
  const int32_t* copy_of = nullptr;  // as planned

  void* packed_x = nullptr;  // [copies] rows of row_bytes
  // [copies, top_k]: local index, -1 where another rank owns the expert
  int32_t* packed_experts = nullptr;
  float* packed_weights = nullptr;  // [copies, top_k]
};

// out[row] += parts[copy] of the row's copies, in order of their ranks.
struct AddCopiesArgs {
  const float* parts = nullptr;  // [copies, cols]
  int64_t rows = 0;
  int64_t cols = 0;
  int num_ranks = 1;
  const int64_t* counts = nullptr;   // as planned
  const int32_t* copy_of = nullptr;  // as planned
  float* out = nullptr;              // [rows, cols]
};

namespace cpu {
void PlanCopies(const PlanCopiesArgs& args, ThreadPool* pool);
void PackCopies(const PackCopiesArgs& args, ThreadPool* pool);
void AddCopies(const AddCopiesArgs& args, ThreadPool* pool);
}  // namespace cpu
namespace cuda {
class Stream;
void PlanCopies(const PlanCopiesArgs& args, Stream* stream);
void PackCopies(const PackCopiesArgs& args, Stream* stream);
void AddCopies(const AddCopiesArgs& args, Stream* stream);
}  // namespace cuda

}  // namespace ring
