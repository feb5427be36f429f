// Brings token rows to the ranks that own their experts, and the experts'
// results back.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"
#include "parallel/communicator.h"

namespace ring {

class Backend;
class ExpertPlacement;

// Rows that lie on this rank for its own experts to work on. Pointers stay
// valid until the next Dispatch.
struct DispatchedRows {
  int64_t rows = 0;
  const void* x = nullptr;  // [rows, hidden], activation dtype
  // [rows, top_k]: index into this rank's owned experts, or -1 where the slot
  // belongs to another rank.
  const int32_t* local_experts = nullptr;
  const float* weights = nullptr;  // [rows, top_k] fp32
};

// The all-to-all path of one MoE layer:
//
//   DispatchedRows in = exchange.Dispatch(rows, x, experts, weights, layer);
//   ... y[r] = sum over in.local_experts[r] of weight * expert(in.x[r]) ...
//   exchange.Combine(y, out);
//
// A token is sent at most once to each rank, however many of its experts live
// there; the destination adds those experts' results and returns one row.
// Example, 2 ranks, 4 experts (0, 1 on rank 0), top 2, rank 0 has three rows:
//
//   row  experts   copies sent          local_experts seen by the destination
//    0   {1, 3}    to 0 and to 1        rank 0: {1, -1}   rank 1: {-1, 1}
//    1   {2, 3}    to 1 only            rank 1: {0, 1}
//    2   {0, 1}    to 0 only            rank 0: {0, 1}
//
// Buffers are sized at construction for `max_rows` per rank sent and for
// world x max_rows received. Confined to the engine thread; Dispatch and
// Combine are collectives over the whole world and alternate.
class TokenExchange {
 public:
  struct Options {
    int64_t max_rows = 0;  // largest `rows` of any Dispatch on any rank
    int64_t hidden = 0;
    int top_k = 0;
    DType x_dtype = DType::kBFloat16;
  };

  virtual ~TokenExchange() = default;

  // Device pointers. x: [rows, hidden] of the activation dtype. experts: [rows,
  // top_k] global expert ids; weights: [rows, top_k] fp32. rows may be 0 and
  // may differ between ranks. `layer` selects the placement.
  virtual DispatchedRows Dispatch(int64_t rows, const void* x,
                                  const int32_t* experts, const float* weights,
                                  int layer) = 0;

  // y: [dispatched rows, hidden] fp32, in the order Dispatch returned. Adds to
  // out[r] ([rows of the Dispatch, hidden] fp32) the parts that came back for
  // row r, in rank order.
  virtual void Combine(const float* y, float* out) = 0;
};

}  // namespace ring
