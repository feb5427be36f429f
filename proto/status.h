// absl::Status <-> grpc::Status. The codes have the same numbers; gRPC codes
// are made here only.
#pragma once

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace ring {

// Code and message; payloads are not carried.
grpc::Status ToGrpcStatus(const absl::Status& status);

// A code that is not one of gRPC's becomes UNKNOWN.
absl::Status FromGrpcStatus(const grpc::Status& status);

// "UNAVAILABLE": for messages to people.
const char* CodeName(absl::StatusCode code);

}  // namespace ring
