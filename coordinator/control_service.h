// ring.v1.Control: what operators call.
#pragma once

#include <functional>

#include "coordinator/dispatcher.h"
#include "ring/v1/inference.grpc.pb.h"

namespace ring {

// Thread-safe; callbacks run on gRPC's threads and do not block.
class ControlService final : public v1::Control::CallbackService {
 public:
  // `dispatcher` must outlive the server that this is registered with.
  // `on_drain` starts the end of the program and returns at once.
  ControlService(Dispatcher* dispatcher, std::function<void()> on_drain)
      : dispatcher_(dispatcher), on_drain_(std::move(on_drain)) {}

  grpc::ServerUnaryReactor* GetLoad(grpc::CallbackServerContext* context,
                                    const v1::GetLoadRequest* request,
                                    v1::GetLoadResponse* response) override;
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const v1::AbortRequest* request,
                                  v1::AbortResponse* response) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;

 private:
  absl::Status StartDrain(const v1::DrainRequest& request,
                          v1::DrainResponse* response);

  Dispatcher* const dispatcher_;
  const std::function<void()> on_drain_;
};

}  // namespace ring
