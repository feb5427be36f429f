#include "kernels/debug_backend.h"

#include <utility>

#include "kernels/forwarding_backend.h"

namespace ring {
namespace {

class DebugBackend final : public ForwardingBackend {
 public:
  DebugBackend(std::unique_ptr<Backend> inner,
               std::atomic<const char*>* current_op)
      : ForwardingBackend(std::move(inner)), current_op_(current_op) {}

  // A recording has no place to wait in.
  void RunStep(int64_t, absl::FunctionRef<void()> fn) override { fn(); }

 protected:
  void Op(const char* name, absl::FunctionRef<void()> op) override {
    *current_op_ = name;
    op();
    Synchronize();
    *current_op_ = nullptr;
  }

 private:
  std::atomic<const char*>* const current_op_;
};

}  // namespace

std::unique_ptr<Backend> MakeDebugBackend(
    std::unique_ptr<Backend> inner, std::atomic<const char*>* current_op) {
  return std::make_unique<DebugBackend>(std::move(inner), current_op);
}

}  // namespace ring
