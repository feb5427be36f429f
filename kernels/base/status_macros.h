// Early return of a failed absl::Status or StatusOr.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define RING_STATUS_CONCAT_(a, b) a##b
#define RING_STATUS_NAME_(a, b) RING_STATUS_CONCAT_(a, b)

// Evaluates an expression of type absl::Status; returns it if it is an error.
#define RING_RETURN_IF_ERROR(expression)         \
  do {                                           \
    absl::Status ring_status_ = (expression);    \
    if (!ring_status_.ok()) return ring_status_; \
  } while (false)

// RING_ASSIGN_OR_RETURN(auto x, F()): x = value of the StatusOr, or return.
#define RING_ASSIGN_OR_RETURN(target, expression)                       \
  RING_ASSIGN_OR_RETURN_(RING_STATUS_NAME_(ring_or_, __LINE__), target, \
                         expression)
#define RING_ASSIGN_OR_RETURN_(holder, target, expression) \
  auto holder = (expression);                              \
  if (!holder.ok()) return std::move(holder).status();     \
  target = *std::move(holder)
