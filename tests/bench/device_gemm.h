// The packaged products of the GPU, as a ceiling for our own.
#pragma once

namespace ring {

// TFLOP/s of an 8192^3 product of bf16, and of e4m3 with one scale a matrix,
// both into bf16: the median of 7 runs on random data.
double PackagedBf16Tflops();
double PackagedE4M3Tflops();

}  // namespace ring
