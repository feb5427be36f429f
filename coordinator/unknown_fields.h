// Finds what a client sent that this server does not know: an option is never
// silently ignored.
#pragma once

#include "absl/status/status.h"

namespace google::protobuf {
class Message;
}

namespace ring {

// INVALID_ARGUMENT names the message type and number of the first unknown
// field, or the field and number of the first unknown enum value, anywhere in
// `message`.
absl::Status CheckAllFieldsKnown(const google::protobuf::Message& message);

}  // namespace ring
