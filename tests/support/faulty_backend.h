// A device that breaks.
#pragma once

#include <memory>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/forwarding_backend.h"

namespace ring {

// Works like `inner` for so many ops, then fails as a device does.
class FaultyBackend final : public ForwardingBackend {
 public:
  FaultyBackend(std::unique_ptr<Backend> inner, int64_t healthy_ops)
      : ForwardingBackend(std::move(inner)), healthy_ops_(healthy_ops) {}

 protected:
  void Op(const char*, absl::FunctionRef<void()> op) override {
    RING_CHECK(healthy_ops_-- > 0) << "planted device error";
    op();
  }

 private:
  int64_t healthy_ops_;
};

}  // namespace ring
