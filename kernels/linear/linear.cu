// Chooses between streaming (decode.cu, decode_wide.cu) and a product of many
// rows (prefill.cu).
#include "kernels/linear/linear_kernels.cuh"

namespace ring::cuda {

namespace {

// From here on block-FP8 weights pass StreamManyRows, which reads them once.
constexpr int64_t kWideRows = 17;
// From here on streaming, which reads the weights once for 16 rows, takes
// longer than a product of many rows.
constexpr int64_t kManyDecodeRows = 33;

void DecodeLinear(const LinearArgs& args, Stream* stream) {
  const bool many = args.decode_rows >= kManyDecodeRows;
  if (args.decode_rows >= kWideRows && WideTakes(args)) {
    StreamManyRows(args, 0, args.decode_rows, stream);
  } else if (!many && FragmentsTake(args)) {
    StreamLinear(args, 0, args.decode_rows, stream);
  } else if (args.also.rows > 0) {
    DecodeLinear(WithoutAlso(args), stream);
    DecodeLinear(AlsoOf(args), stream);
  } else if (many && args.weight.dtype == DType::kBFloat16 &&
             args.x_dtype == DType::kBFloat16) {
    MultiplyLinear(args, 0, args.decode_rows, stream);
  } else {
    StreamLinear(args, 0, args.decode_rows, stream);
  }
}

}  // namespace

void Linear(const LinearArgs& args, Stream* stream) {
  if (args.rows == 0 || args.weight.rows == 0) {
    if (args.also.rows > 0) Linear(AlsoOf(args), stream);
    return;
  }
  DecodeLinear(args, stream);
  if (args.rows > args.decode_rows) {
    MultiplyLinear(args, args.decode_rows, args.rows, stream);
    if (args.also.rows > 0) {
      MultiplyLinear(AlsoOf(args), args.decode_rows, args.rows, stream);
    }
  }
}

}  // namespace ring::cuda
