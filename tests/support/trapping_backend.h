// A GPU that traps.
#pragma once

#include <memory>
#include <utility>

#include "kernels/forwarding_backend.h"

namespace ring {

// Queues a kernel that executes a trap instruction on a GPU's `queue`
// (Backend::native_queue).
void LaunchTrap(void* queue);

// Works like `inner`, a GPU, for so many ops; the next one traps.
class TrappingBackend final : public ForwardingBackend {
 public:
  TrappingBackend(std::unique_ptr<Backend> inner, int64_t healthy_ops)
      : ForwardingBackend(std::move(inner)), healthy_ops_(healthy_ops) {}

 protected:
  void Op(const char*, absl::FunctionRef<void()> op) override {
    op();
    if (healthy_ops_-- == 0) LaunchTrap(native_queue(Queue::kMain));
  }

 private:
  int64_t healthy_ops_;
};

}  // namespace ring
