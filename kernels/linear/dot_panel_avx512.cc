// Compiled for AVX-512 F, BW, DQ and VL.
#define RING_DOT_LANES 16
#include "kernels/linear/dot_panel_inl.h"

namespace ring {

const DotKernels kAvx512DotKernels = kWidenedDotKernels;

}  // namespace ring
