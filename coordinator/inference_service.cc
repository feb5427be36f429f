#include "coordinator/inference_service.h"

#include "coordinator/generate_call.h"
#include "coordinator/prompt.h"
#include "coordinator/unknown_fields.h"
#include "kernels/base/status_macros.h"
#include "proto/status.h"

namespace ring {
namespace {

constexpr char kServerVersion[] = RING_VERSION;

absl::Status TokenizePrompt(const v1::TokenizeRequest& request,
                            const ServedModel& model,
                            v1::TokenizeResponse* response) {
  RING_RETURN_IF_ERROR(CheckAllFieldsKnown(request));
  RING_ASSIGN_OR_RETURN(const Prompt prompt, ReadPrompt(request, model));
  response->mutable_token_ids()->Add(prompt.ids.begin(), prompt.ids.end());
  response->set_text(prompt.text);
  return absl::OkStatus();
}

void Describe(const ServedModel& model, v1::GetModelResponse* response) {
  response->set_name(model.name);
  response->set_digest(model.digest);
  response->set_architecture(model.architecture);
  response->set_context_length(model.context_length);
  response->set_vocab_size(model.vocab_size);
  response->set_num_token_ids(model.num_token_ids);
  response->mutable_eos_token_ids()->Add(model.eos_token_ids.begin(),
                                         model.eos_token_ids.end());
  v1::Sampling* sampling = response->mutable_default_sampling();
  sampling->set_temperature(model.defaults.temperature);
  sampling->set_top_k(model.defaults.top_k);
  sampling->set_top_p(model.defaults.top_p);
  sampling->set_min_p(model.defaults.min_p);
  sampling->set_repetition_penalty(model.defaults.repetition_penalty);
  response->set_has_chat_template(model.chat_template != nullptr);
  response->set_server_version(kServerVersion);
}

grpc::ServerUnaryReactor* Finished(grpc::CallbackServerContext* context,
                                   const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace

grpc::ServerWriteReactor<v1::GenerateEvent>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  const std::shared_ptr<GenerateCall> call =
      GenerateCall::Create(context, dispatcher_, read_patience_);
  call->Start(*request, *model_);
  return call.get();  // it keeps itself until OnDone
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(
    grpc::CallbackServerContext* context, const v1::TokenizeRequest* request,
    v1::TokenizeResponse* response) {
  return Finished(context, TokenizePrompt(*request, *model_, response));
}

grpc::ServerUnaryReactor* InferenceService::GetModel(
    grpc::CallbackServerContext* context, const v1::GetModelRequest* request,
    v1::GetModelResponse* response) {
  const absl::Status status = CheckAllFieldsKnown(*request);
  if (status.ok()) Describe(*model_, response);
  return Finished(context, status);
}

}  // namespace ring
