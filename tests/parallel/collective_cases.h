// Tests of Communicator and ControlChannel that run on every rank of a world,
// whatever connects the ranks.
#pragma once

#include <vector>

#include "kernels/backend.h"
#include "parallel/communicator.h"
#include "parallel/control_channel.h"

namespace ring {

// Bounds of the ReduceRows calls in the cases. Large ones take several rounds.
inline constexpr int64_t kMaxCaseRows = 64;
inline constexpr int64_t kMaxCaseCols = 96;
inline constexpr int64_t kMaxCasePartsBytes = 12000;

struct CollectiveCase {
  const char* name;
  // Called by every rank at the same time, with the backend that the
  // communicator works on; failures are GoogleTest's.
  void (*run)(Communicator* world, ControlChannel* control, Backend* backend);
};

// Every expected value is computed from (rank, row, column).
const std::vector<CollectiveCase>& CollectiveCases();

// In a file of its own.
void TokenExchangeEqualsLocalExperts(Communicator* world,
                                     ControlChannel* control, Backend* backend);

}  // namespace ring
