// Memory of the host that can still be had.
#pragma once

#include <cstdint>

namespace ring {

// What new allocations can get without swapping, as /proc/meminfo and the
// control group's limit tell; the largest number when neither can be read.
int64_t AvailableMemoryBytes();

}  // namespace ring
