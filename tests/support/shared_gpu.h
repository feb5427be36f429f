// GPUs for the ranks of an MPI test, of which there may be fewer than ranks.
#pragma once

#include <cstdlib>
#include <string>

namespace ring {

// RING_TEST_GPUS: how many this host has. 1 unless it is set.
inline int NumTestGpus() {
  const char* const number = std::getenv("RING_TEST_GPUS");
  return number != nullptr ? std::atoi(number) : 1;
}

// As MakeBackend takes it.
inline std::string GpuOfRank(int local_rank) {
  return "cuda:" + std::to_string(local_rank % NumTestGpus());
}

inline bool RanksShareAGpu(int local_size) {
  return local_size > NumTestGpus();
}

}  // namespace ring
