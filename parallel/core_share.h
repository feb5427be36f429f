// How the ranks of a host divide its cores.
#pragma once

#include <vector>

namespace ring {

// The numbers of the cores that this thread may run on, as the launcher or a
// container bound it; ascending. Empty if the system does not tell.
std::vector<int> BoundCores();

// Whole cores for `rank`, an index into `bound`: every core counts in equal
// parts for the ranks that may run on it. At least 1. bound[i]: the cores of
// rank i of the host.
int ShareOfCores(const std::vector<std::vector<int>>& bound, int rank);

}  // namespace ring
