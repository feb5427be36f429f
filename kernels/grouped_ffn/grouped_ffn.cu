// Chooses between decoding, streaming and tiles; the kernels are in
// decode_ffn.cu, wide_ffn.cu, stream_ffn.cu and tile_ffn.cu.
#include "kernels/grouped_ffn/grouped_ffn.h"

#include <algorithm>

#include "kernels/cuda_stream.cuh"
#include "kernels/grouped_ffn/combine.cuh"
#include "kernels/grouped_ffn/ffn_kernels.cuh"
#include "kernels/grouped_ffn/prompt_workspace.h"

namespace ring::cuda {
namespace {

// From here on an expert often has several rows, and WideFfn is faster.
constexpr int64_t kWideDecodeRows = 33;
// More rows than this are a prompt's: tiles multiply faster.
constexpr int64_t kMaxDecodeRows = 256;

void RunFfn(const FfnUnits& units, bool tiles, Stream* stream) {
  if (tiles && TileFfnSupports(units)) {
    TileFfn(units, stream);
  } else {
    StreamFfn(units, stream);
  }
}

}  // namespace

void DenseFfn(const DenseFfnArgs& args, Stream* stream) {
  const int64_t hidden = args.weights.gate.cols;
  RING_CHECK_EQ(args.weights.down.rows, hidden);
  RING_CHECK_EQ(args.weights.down.cols, args.weights.gate.rows);
  if (hidden == 0) return;
  FfnUnits units;
  units.x_dtype = args.x_dtype;
  units.matrices = absl::MakeConstSpan(&args.weights, 1);
  units.h = args.workspace;
  units.accumulate = args.accumulate;
  for (int64_t row = 0; row < args.rows;) {
    // Decode rows and prompt rows take different kernels.
    const bool decode = row < args.decode_rows;
    const int64_t end = decode ? args.decode_rows : args.rows;
    units.rows = std::min(kDenseFfnRows, end - row);
    units.x = static_cast<const char*>(args.x) +
              row * hidden * static_cast<int64_t>(SizeOf(args.x_dtype));
    units.y = args.y + row * hidden;
    FfnUnits decoded = units;
    decoded.matrices = {};
    decoded.shared = &args.weights;
    decoded.shared_rows = units.rows;
    if (decode && DecodeFfnSupports(decoded)) {
      DecodeFfn(decoded, stream);
    } else {
      RunFfn(units, !decode, stream);
    }
    row += units.rows;
  }
}

namespace {

// True: args.norm, if set, is done too.
bool RunExperts(const GroupedFfnArgs& args, Stream* stream) {
  if (args.experts.empty()) {
    RING_CUDA_CHECK(cudaMemsetAsync(
        args.y, 0, args.rows * args.hidden * sizeof(float), stream->get()));
    if (args.shared != nullptr) DenseFfn(SharedFfn(args), stream);
    return false;
  }
  RING_CHECK_EQ(args.experts[0].gate.cols, args.hidden);
  FfnUnits units;
  units.x = args.x;
  units.x_dtype = args.x_dtype;
  units.rows = args.rows;
  units.top_k = args.top_k;
  units.experts = args.local_experts;
  units.weights = args.weights;
  units.matrices = args.experts;
  units.h = args.workspace;
  units.y = args.y;
  FfnUnits decoded = units;
  decoded.shared = args.shared;
  decoded.shared_begin = args.shared_begin;
  decoded.shared_rows = args.shared_rows;
  ResidualNormArgs norm;
  if (args.norm != nullptr) {
    norm = NormOf(args);
    if (TakesNorm(norm)) decoded.norm = &norm;
  }
  const bool few = args.rows <= kMaxDecodeRows;
  if (few && args.rows >= kWideDecodeRows && WideFfnSupports(decoded)) {
    WideFfn(decoded, stream);
    return decoded.norm != nullptr;
  }
  if (few && DecodeFfnSupports(decoded)) {
    DecodeFfn(decoded, stream);
    return decoded.norm != nullptr;
  }
  RunFfn(units, args.rows >= kMinPromptRows, stream);
  if (args.shared != nullptr) DenseFfn(SharedFfn(args), stream);
  return false;
}

}  // namespace

void GroupedFfn(const GroupedFfnArgs& args, Stream* stream) {
  if (args.rows == 0) return;
  if (RunExperts(args, stream)) return;
  if (args.norm != nullptr) ResidualNorm(NormOf(args), stream);
}

}  // namespace ring::cuda
