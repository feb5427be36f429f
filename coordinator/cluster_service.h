// ring.v1.Cluster: the worker groups' side of the coordinator.
#pragma once

#include <string>

#include "coordinator/dispatcher.h"
#include "ring/v1/cluster.grpc.pb.h"

namespace ring {

// One stream per worker group. Thread-safe; callbacks run on gRPC's threads.
class ClusterService final : public v1::Cluster::CallbackService {
 public:
  // `dispatcher` must outlive the server that this is registered with. Groups
  // with another digest than `model_digest` are refused.
  ClusterService(std::string model_digest, Dispatcher* dispatcher)
      : model_digest_(std::move(model_digest)), dispatcher_(dispatcher) {}

  grpc::ServerBidiReactor<v1::FromWorker, v1::ToWorker>* Join(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* CheckGroup(
      grpc::CallbackServerContext* context, const v1::Hello* hello,
      v1::CheckGroupResponse* response) override;

 private:
  const std::string model_digest_;
  Dispatcher* const dispatcher_;
};

}  // namespace ring
