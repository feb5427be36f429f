#include "parallel/core_share.h"

#include <sched.h>

#include <algorithm>
#include <map>

namespace ring {

std::vector<int> BoundCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return cores;
}

int ShareOfCores(const std::vector<std::vector<int>>& bound, int rank) {
  std::map<int, int> ranks_of;
  for (const std::vector<int>& cores : bound) {
    for (const int core : cores) ++ranks_of[core];
  }
  double share = 0;
  for (const int core : bound[rank]) share += 1.0 / ranks_of[core];
  constexpr double kRounding = 1e-6;  // thirds add up to wholes
  return std::max(1, static_cast<int>(share + kRounding));
}

}  // namespace ring
