// ring.v1.Inference: what clients call.
#pragma once

#include "coordinator/dispatcher.h"
#include "coordinator/served_model.h"
#include "ring/v1/inference.grpc.pb.h"

namespace ring {

// Callbacks run on gRPC's threads; none blocks. Immutable but for the
// dispatcher, so thread-safe.
class InferenceService final : public v1::Inference::CallbackService {
 public:
  // Both must outlive the server that this is registered with. For
  // `read_patience` see GenerateCall.
  InferenceService(const ServedModel* model, Dispatcher* dispatcher,
                   std::chrono::milliseconds read_patience)
      : model_(model), dispatcher_(dispatcher), read_patience_(read_patience) {}

  grpc::ServerWriteReactor<v1::GenerateEvent>* Generate(
      grpc::CallbackServerContext* context,
      const v1::GenerateRequest* request) override;

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;

  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override;

 private:
  const ServedModel* const model_;
  Dispatcher* const dispatcher_;
  const std::chrono::milliseconds read_patience_;
};

}  // namespace ring
