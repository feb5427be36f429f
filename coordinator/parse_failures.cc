#include "coordinator/parse_failures.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/descriptor.h"

namespace ring {
namespace {

using grpc::experimental::InterceptionHookPoints;

// Of "/ring.v1.Inference/Generate"; null if no service of ours has it.
const google::protobuf::MethodDescriptor* FindMethod(absl::string_view path) {
  if (!path.empty()) path.remove_prefix(1);
  std::string name(path);
  std::replace(name.begin(), name.end(), '/', '.');
  return google::protobuf::DescriptorPool::generated_pool()->FindMethodByName(
      name);
}

class Explainer final : public grpc::experimental::Interceptor {
 public:
  explicit Explainer(const google::protobuf::MethodDescriptor* method)
      : method_(method) {}

  void Intercept(
      grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(
            InterceptionHookPoints::PRE_SEND_STATUS)) {
      const grpc::Status status = methods->GetSendStatus();
      // Our own statuses have words.
      if (status.error_code() == grpc::StatusCode::UNIMPLEMENTED &&
          status.error_message().empty()) {
        methods->ModifySendStatus(
            grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                         absl::StrCat("the request cannot be parsed as a ",
                                      method_->input_type()->full_name())));
      }
    }
    methods->Proceed();
  }

 private:
  const google::protobuf::MethodDescriptor* const method_;
};

class Factory final
    : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override {
    const auto* const method = FindMethod(info->method());
    return method == nullptr ? nullptr : new Explainer(method);  // gRPC owns it
  }
};

}  // namespace

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>
ExplainParseFailures() {
  return std::make_unique<Factory>();
}

}  // namespace ring
