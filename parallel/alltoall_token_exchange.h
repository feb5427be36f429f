// TokenExchange that sends a row to those ranks only that own its experts.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "parallel/communicator.h"
#include "parallel/expert_placement.h"
#include "parallel/token_exchange.h"

namespace ring {

// Rows are packed by destination rank, in row order, so results depend on
// nothing but the arguments. One Dispatch is an AllToAll of the counts, a wait
// for the device to know them on the host, and an AllToAll of the rows; one
// Combine is an AllToAll. Because of the wait a step with it cannot be
// recorded.
//
// `world` and `backend` outlive the exchange. INVALID_ARGUMENT: the placement's
// world has another size than `world`. RESOURCE_EXHAUSTED from the backend.
absl::StatusOr<std::unique_ptr<TokenExchange>> MakeAllToAllTokenExchange(
    Communicator* world, const ExpertPlacement* placement, Backend* backend,
    const TokenExchange::Options& options);

}  // namespace ring
