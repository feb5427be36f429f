#include "coordinator/request_limits.h"

#include <cmath>
#include <optional>
#include <random>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "coordinator/unknown_fields.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "kernels/base/status_macros.h"

namespace ring {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr OptionLimit kOptionLimits[] = {
    {"temperature", 0, 100},
    {"top_k", 0, 1 << 20},
    {"top_p", 0, 1, /*min_excluded=*/true},
    {"min_p", 0, 1},
    {"repetition_penalty", 0, 10, true},
    {"presence_penalty", -2, 2},
    {"frequency_penalty", -2, 2},
    {"max_tokens", 1, 1 << 30},
    {"min_tokens", 0, 1 << 30},
    {"choices", 1, 16},
    {"top_logprobs", 0, 20},
    {"prompt_logprobs", 0, 20},
};

// The value of a singular numeric field; nothing for other kinds.
std::optional<double> NumericValue(const Message& message,
                                   const FieldDescriptor* field) {
  if (field->is_repeated()) return std::nullopt;
  const Reflection* reflection = message.GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return reflection->GetInt32(message, field);
    case FieldDescriptor::CPPTYPE_INT64:
      return static_cast<double>(reflection->GetInt64(message, field));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return reflection->GetDouble(message, field);
    default:
      return std::nullopt;
  }
}

// Whole numbers without an exponent.
std::string Text(double value) {
  if (std::abs(value) < 1e15 && value == std::floor(value)) {
    return absl::StrCat(static_cast<int64_t>(value));
  }
  return absl::StrCat(value);
}

absl::Status CheckRange(const OptionLimit& limit, double value) {
  const bool above =
      limit.min_excluded ? value > limit.min : value >= limit.min;
  if (above && value <= limit.max) return absl::OkStatus();  // false for NaN
  return absl::InvalidArgumentError(
      absl::StrCat(limit.name, " = ", Text(value), " is not in ",
                   limit.min_excluded ? "(" : "[", Text(limit.min), ", ",
                   Text(limit.max), "]"));
}

// Checks the numeric fields of one group of options that are present.
absl::Status CheckRanges(const Message& options) {
  std::vector<const FieldDescriptor*> fields;
  options.GetReflection()->ListFields(options, &fields);
  for (const FieldDescriptor* field : fields) {
    const std::optional<double> value = NumericValue(options, field);
    if (!value.has_value()) continue;
    for (const OptionLimit& limit : kOptionLimits) {
      if (limit.name != field->name()) continue;
      RING_RETURN_IF_ERROR(CheckRange(limit, *value));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRequestId(absl::string_view id) {
  if (id.size() > kMaxRequestIdBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("request_id has ", id.size(), " bytes, at most ",
                     kMaxRequestIdBytes, " are allowed"));
  }
  for (size_t i = 0; i < id.size(); ++i) {
    if (id[i] < 0x20 || id[i] > 0x7e) {
      return absl::InvalidArgumentError(
          absl::StrCat("request_id: byte ", i, " is 0x",
                       absl::Hex(static_cast<uint8_t>(id[i]), absl::kZeroPad2),
                       ", not printable ASCII"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLogitBias(const v1::Sampling& sampling,
                            int32_t num_token_ids) {
  if (sampling.logit_bias_size() > kMaxLogitBiases) {
    return absl::InvalidArgumentError(
        absl::StrCat("logit_bias has ", sampling.logit_bias_size(),
                     " entries, at most ", kMaxLogitBiases, " are allowed"));
  }
  absl::flat_hash_set<int32_t> ids;
  for (const v1::LogitBias& entry : sampling.logit_bias()) {
    const int32_t id = entry.token_id();
    if (id < 0 || id >= num_token_ids) {
      return absl::InvalidArgumentError(absl::StrCat(
          "logit_bias: id ", id, " is not in [0, ", num_token_ids - 1, "]"));
    }
    if (!ids.insert(id).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("logit_bias has id ", id, " twice"));
    }
    if (!(std::abs(entry.bias()) <= kMaxLogitBias)) {  // true for NaN
      return absl::InvalidArgumentError(absl::StrCat(
          "logit_bias of id ", id, " = ", Text(entry.bias()), " is not in [",
          -kMaxLogitBias, ", ", kMaxLogitBias, "]"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckStopping(const v1::Stopping& stopping,
                           int32_t num_token_ids) {
  if (stopping.stop_strings_size() > kMaxStopStrings) {
    return absl::InvalidArgumentError(
        absl::StrCat("stop_strings has ", stopping.stop_strings_size(),
                     " entries, at most ", kMaxStopStrings, " are allowed"));
  }
  for (const std::string& stop : stopping.stop_strings()) {
    if (stop.empty() || stop.size() > kMaxStopStringBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("a stop string has ", stop.size(), " bytes, not in [1, ",
                       kMaxStopStringBytes, "]"));
    }
  }
  if (stopping.stop_token_ids_size() > kMaxStopTokenIds) {
    return absl::InvalidArgumentError(
        absl::StrCat("stop_token_ids has ", stopping.stop_token_ids_size(),
                     " entries, at most ", kMaxStopTokenIds, " are allowed"));
  }
  if (stopping.has_max_tokens() &&
      stopping.min_tokens() > stopping.max_tokens()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "min_tokens = ", stopping.min_tokens(),
        " is not in [0, max_tokens = ", stopping.max_tokens(), "]"));
  }
  for (const int32_t id : stopping.stop_token_ids()) {
    if (id < 0 || id >= num_token_ids) {
      return absl::InvalidArgumentError(absl::StrCat(
          "stop_token_ids: ", id, " is not in [0, ", num_token_ids - 1, "]"));
    }
  }
  return absl::OkStatus();
}

uint64_t DrawSeed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

}  // namespace

absl::Span<const OptionLimit> OptionLimits() { return kOptionLimits; }

absl::StatusOr<RequestOptions> ReadOptions(const v1::GenerateRequest& request,
                                           const ServedModel& model) {
  RING_RETURN_IF_ERROR(CheckAllFieldsKnown(request));
  RING_RETURN_IF_ERROR(CheckRequestId(request.request_id()));
  RING_RETURN_IF_ERROR(CheckRanges(request.sampling()));
  RING_RETURN_IF_ERROR(CheckRanges(request.stopping()));
  RING_RETURN_IF_ERROR(CheckRanges(request.output()));
  RING_RETURN_IF_ERROR(CheckLogitBias(request.sampling(), model.num_token_ids));
  RING_RETURN_IF_ERROR(CheckStopping(request.stopping(), model.num_token_ids));

  RequestOptions options;
  const v1::Sampling& sampling = request.sampling();
  const SamplingDefaults& defaults = model.defaults;
  options.temperature = sampling.has_temperature() ? sampling.temperature()
                                                   : defaults.temperature;
  options.top_k = sampling.has_top_k() ? sampling.top_k() : defaults.top_k;
  options.top_p = sampling.has_top_p() ? sampling.top_p() : defaults.top_p;
  options.min_p = sampling.has_min_p() ? sampling.min_p() : defaults.min_p;
  options.seed = sampling.has_seed() ? sampling.seed() : DrawSeed();
  options.repetition_penalty = sampling.has_repetition_penalty()
                                   ? sampling.repetition_penalty()
                                   : defaults.repetition_penalty;
  options.presence_penalty = sampling.presence_penalty();
  options.frequency_penalty = sampling.frequency_penalty();
  options.logit_bias.assign(sampling.logit_bias().begin(),
                            sampling.logit_bias().end());

  const v1::Stopping& stopping = request.stopping();
  options.max_tokens = stopping.max_tokens();
  options.min_tokens = stopping.min_tokens();
  options.ignore_eos = stopping.ignore_eos();
  options.stop_strings.assign(stopping.stop_strings().begin(),
                              stopping.stop_strings().end());
  options.stop_token_ids.assign(stopping.stop_token_ids().begin(),
                                stopping.stop_token_ids().end());

  const v1::Output& output = request.output();
  options.choices = output.has_choices() ? output.choices() : 1;
  options.logprobs = output.logprobs();
  options.top_logprobs = output.top_logprobs();
  if (output.has_prompt_logprobs()) {
    options.prompt_logprobs = output.prompt_logprobs();
  }
  options.special_tokens = output.special_tokens();
  options.split_reasoning =
      !output.has_split_reasoning() || output.split_reasoning();
  return options;
}

void EchoOptions(const RequestOptions& options, v1::Accepted* accepted) {
  v1::Sampling* sampling = accepted->mutable_sampling();
  sampling->set_temperature(options.temperature);
  sampling->set_top_k(options.top_k);
  sampling->set_top_p(options.top_p);
  sampling->set_min_p(options.min_p);
  sampling->set_seed(options.seed);
  sampling->set_repetition_penalty(options.repetition_penalty);
  sampling->set_presence_penalty(options.presence_penalty);
  sampling->set_frequency_penalty(options.frequency_penalty);
  sampling->mutable_logit_bias()->Add(options.logit_bias.begin(),
                                      options.logit_bias.end());

  v1::Stopping* stopping = accepted->mutable_stopping();
  stopping->set_max_tokens(options.max_tokens);
  for (const std::string& stop : options.stop_strings) {
    stopping->add_stop_strings(stop);
  }
  for (const int32_t id : options.stop_token_ids) {
    stopping->add_stop_token_ids(id);
  }
  stopping->set_ignore_eos(options.ignore_eos);
  stopping->set_min_tokens(options.min_tokens);

  v1::Output* output = accepted->mutable_output();
  output->set_choices(options.choices);
  output->set_logprobs(options.logprobs);
  output->set_top_logprobs(options.top_logprobs);
  if (options.prompt_logprobs.has_value()) {
    output->set_prompt_logprobs(*options.prompt_logprobs);
  }
  output->set_special_tokens(options.special_tokens);
  output->set_split_reasoning(options.split_reasoning);
}

}  // namespace ring
