// Waits after every op, to find the one that fails.
#pragma once

#include <atomic>
#include <memory>

#include "kernels/backend.h"

namespace ring {

// In front of `inner`. While an op runs *current_op is its name, else null: who
// hears of a device's error then knows which op it was. Steps are not recorded.
// `current_op` outlives the backend.
std::unique_ptr<Backend> MakeDebugBackend(std::unique_ptr<Backend> inner,
                                          std::atomic<const char*>* current_op);

}  // namespace ring
