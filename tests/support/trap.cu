#include <cuda_runtime.h>

#include "tests/support/trapping_backend.h"

namespace ring {
namespace {

__global__ void Trap() { asm volatile("trap;"); }

}  // namespace

void LaunchTrap(void* queue) {
  Trap<<<1, 1, 0, static_cast<cudaStream_t>(queue)>>>();
}

}  // namespace ring
