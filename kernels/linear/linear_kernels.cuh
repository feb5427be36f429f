// The ways of Linear on a GPU, and the block of rows that each is given.
#pragma once

#include "kernels/linear/linear.h"

namespace ring::cuda {

class Stream;

// LinearArgs restricted to a block of rows.
struct RowBlock {
  const void* x;
  void* y;
  int64_t rows;
};

// The rows [begin, end) of args.
inline RowBlock RowsOf(const LinearArgs& args, int64_t begin, int64_t end) {
  RowBlock block;
  block.x =
      static_cast<const char*>(args.x) +
      begin * args.weight.cols * static_cast<int64_t>(SizeOf(args.x_dtype));
  block.y =
      static_cast<char*>(args.y) +
      begin * args.weight.rows * static_cast<int64_t>(SizeOf(args.y_dtype));
  block.rows = end - begin;
  return block;
}

// decode.cu: rows [begin, end) with the weights streamed once for every few
// rows. Any types, any sizes; a row's bits do not depend on the other rows.
// `also` is multiplied too if FragmentsTake(args); it is to be empty if not.
void StreamLinear(const LinearArgs& args, int64_t begin, int64_t end,
                  Stream* stream);
bool FragmentsTake(const LinearArgs& args);

// decode_wide.cu: as StreamLinear, for more rows than pass it at once.
// WideTakes says whether for these types and shapes, those of `also` included.
void StreamManyRows(const LinearArgs& args, int64_t begin, int64_t end,
                    Stream* stream);
bool WideTakes(const LinearArgs& args);

// prefill.cu: rows [begin, end) as one product of many rows.
void MultiplyLinear(const LinearArgs& args, int64_t begin, int64_t end,
                    Stream* stream);

}  // namespace ring::cuda
