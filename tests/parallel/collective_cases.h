// Tests of Communicator and ControlChannel that run on every rank of a world,
// whatever connects the ranks.
#pragma once

#include <vector>

#include "parallel/communicator.h"
#include "parallel/control_channel.h"

namespace ring {

// Bounds of the ReduceRows calls in the cases.
inline constexpr int64_t kMaxCaseRows = 64;
inline constexpr int64_t kMaxCaseCols = 96;

struct CollectiveCase {
  const char* name;
  // Called by every rank at the same time; failures are GoogleTest's.
  void (*run)(Communicator* world, ControlChannel* control);
};

// Every expected value is computed from (rank, row, column).
const std::vector<CollectiveCase>& CollectiveCases();

// In a file of its own.
void TokenExchangeEqualsLocalExperts(Communicator* world,
                                     ControlChannel* control);

}  // namespace ring
