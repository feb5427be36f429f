// A thread owns one angle, in double as the contract asks: a step has few.
#include "kernels/cuda_stream.cuh"
#include "kernels/rope/rope.h"

namespace ring::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void FillRopeTable(RopeTableArgs args) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= args.rows * args.half) return;
  const double angle =
      args.positions[i / args.half] * args.frequency[i % args.half];
  double sin_angle = 0;
  double cos_angle = 0;
  sincos(angle, &sin_angle, &cos_angle);
  args.cos[i] = static_cast<float>(args.gain * cos_angle);
  args.sin[i] = static_cast<float>(args.gain * sin_angle);
}

}  // namespace

void RopeTable(const RopeTableArgs& args, Stream* stream) {
  const int64_t entries = args.rows * args.half;
  if (entries == 0) return;
  FillRopeTable<<<Blocks(entries, kThreads), kThreads, 0, stream->get()>>>(
      args);
  CheckLaunch("FillRopeTable");
}

}  // namespace ring::cuda
