// Compiled for AVX2 and FMA.
#define RING_DOT_LANES 8
#include "kernels/linear/dot_panel_inl.h"

namespace ring {

const DotKernels kAvx2DotKernels = kWidenedDotKernels;

}  // namespace ring
