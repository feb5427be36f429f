#include "coordinator/control_service.h"

#include "coordinator/unknown_fields.h"
#include "kernels/base/status_macros.h"
#include "proto/status.h"

namespace ring {
namespace {

grpc::ServerUnaryReactor* Finished(grpc::CallbackServerContext* context,
                                   const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace

grpc::ServerUnaryReactor* ControlService::GetLoad(
    grpc::CallbackServerContext* context, const v1::GetLoadRequest* request,
    v1::GetLoadResponse* response) {
  const absl::Status status = CheckAllFieldsKnown(*request);
  if (status.ok()) *response = dispatcher_->GetLoad();
  return Finished(context, status);
}

grpc::ServerUnaryReactor* ControlService::Abort(
    grpc::CallbackServerContext* context, const v1::AbortRequest* request,
    v1::AbortResponse*) {
  absl::Status status = CheckAllFieldsKnown(*request);
  if (status.ok()) status = dispatcher_->Abort(request->request_id());
  return Finished(context, status);
}

grpc::ServerUnaryReactor* ControlService::Drain(
    grpc::CallbackServerContext* context, const v1::DrainRequest* request,
    v1::DrainResponse* response) {
  return Finished(context, StartDrain(*request, response));
}

absl::Status ControlService::StartDrain(const v1::DrainRequest& request,
                                        v1::DrainResponse* response) {
  RING_RETURN_IF_ERROR(CheckAllFieldsKnown(request));
  if (request.group_id() != 0) {
    RING_ASSIGN_OR_RETURN(const int64_t live,
                          dispatcher_->DrainGroup(request.group_id()));
    response->set_live_requests(live);
    return absl::OkStatus();
  }
  response->set_live_requests(dispatcher_->live_requests());
  on_drain_();
  return absl::OkStatus();
}

}  // namespace ring
