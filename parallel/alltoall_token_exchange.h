// TokenExchange over host memory.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "parallel/communicator.h"
#include "parallel/expert_placement.h"
#include "parallel/token_exchange.h"

namespace ring {

// Rows are packed by destination rank, in row order, so results depend on
// nothing but the arguments. One Dispatch is an ExchangeCounts and two
// AllToAll, one Combine an AllToAll.
//
// `world`, `placement` and `backend` outlive the exchange; the backend's device
// pointers must be host pointers. INVALID_ARGUMENT: the placement's world has
// another size than `world`. RESOURCE_EXHAUSTED from the backend.
absl::StatusOr<std::unique_ptr<TokenExchange>> MakeAllToAllTokenExchange(
    Communicator* world, const ExpertPlacement* placement, Backend* backend,
    const TokenExchange::Options& options);

}  // namespace ring
