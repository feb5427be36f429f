// The bytes of a GenerateRequest, as far as a request that may run.
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "coordinator/prompt.h"
#include "coordinator/request_limits.h"
#include "coordinator/served_model.h"
#include "coordinator/unknown_fields.h"
#include "kernels/base/check.h"
#include "ring/v1/inference.pb.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const ring::ServedModel* const model =
      ring::LoadServedModel(RING_TEST_DATA "/ring-tiny")->release();
  ring::v1::GenerateRequest request;
  if (!request.ParseFromArray(data, static_cast<int>(size))) return 0;
  if (!ring::CheckAllFieldsKnown(request).ok()) return 0;
  const auto options = ring::ReadOptions(request, *model);
  const auto prompt = ring::ReadPrompt(request, *model);
  if (options.ok()) {
    RING_CHECK(std::isfinite(options->temperature) &&
               options->temperature >= 0);
    RING_CHECK(options->top_p > 0 && options->top_p <= 1);
    RING_CHECK_GE(options->top_k, 0);
    RING_CHECK_GE(options->max_tokens, 0);
    ring::v1::Accepted accepted;
    ring::EchoOptions(*options, &accepted);
  }
  if (prompt.ok()) {
    RING_CHECK(!prompt->ids.empty());
    for (const int32_t id : prompt->ids) {
      RING_CHECK(id >= 0 && id < model->num_token_ids);
    }
  }
  return 0;
}
