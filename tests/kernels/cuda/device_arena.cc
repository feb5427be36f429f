#include "tests/kernels/cuda/device_arena.h"

#include "kernels/backend_factory.h"

namespace ring {
namespace {

Backend* MakeOrDie(const char* device) {
  auto backend = MakeBackend(device, 8);
  RING_CHECK(backend.ok()) << backend.status().ToString();
  return backend->release();
}

}  // namespace

Backend* TestCpu() {
  static Backend* const backend = MakeOrDie("cpu");
  return backend;
}

Backend* TestGpu() {
  static Backend* const backend = MakeOrDie("cuda");
  return backend;
}

}  // namespace ring
