// An answer in words to a request that is no message of its method.
#pragma once

#include <grpcpp/support/server_interceptor.h>

#include <memory>

namespace ring {

// gRPC ends a call whose request it cannot parse with UNIMPLEMENTED and no
// text, before any service sees it. With this it is INVALID_ARGUMENT, naming
// the message that was expected. Methods that do not exist stay UNIMPLEMENTED.
// Thread-safe.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>
ExplainParseFailures();

}  // namespace ring
