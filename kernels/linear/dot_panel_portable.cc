// Vectors of four fp32 lanes, which every 64-bit processor has: SSE2, NEON.
#define RING_DOT_LANES 4
#include "kernels/linear/dot_panel_inl.h"

namespace ring {

const DotKernels kPortableDotKernels = kWidenedDotKernels;

}  // namespace ring
