// Which vector instructions this process uses.
#pragma once

#include "kernels/linear/dot_panel.h"

namespace ring {

// In ascending order; each includes the ones before it.
enum class CpuIsa { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

// "portable", "avx2", "avx512" or "avx512_bf16".
const char* Name(CpuIsa isa);

// The highest one that this build and this processor have.
CpuIsa DetectCpuIsa();

// DetectCpuIsa(), or what the environment variable RING_CPU_ISA names. A name
// that is unknown or beyond the processor is logged once and ignored. Decided
// on the first call. Thread-safe.
CpuIsa ActiveCpuIsa();

// REQUIRES: isa <= DetectCpuIsa().
const DotKernels& DotKernelsOf(CpuIsa isa);

}  // namespace ring
