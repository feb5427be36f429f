// Chooses between streaming (decode.cu) and a product of many rows
// (prefill.cu).
#include "kernels/linear/linear_kernels.cuh"

namespace ring::cuda {

void Linear(const LinearArgs& args, Stream* stream) {
  if (args.rows == 0 || args.weight.rows == 0) return;
  StreamLinear(args, 0, args.decode_rows, stream);
  if (args.rows > args.decode_rows) {
    MultiplyLinear(args, args.decode_rows, args.rows, stream);
  }
}

}  // namespace ring::cuda
