#include "worker/model_files/generation_config.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace ring {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{1} << 20;
constexpr int64_t kMaxCount = int64_t{1} << 28;

absl::Status Refuse(const char* name, const Json& value,
                    absl::string_view supported) {
  return absl::InvalidArgumentError(
      absl::StrCat("generation_config.json: ", name, " = ",
                   value.dump(-1, ' ', false, Json::error_handler_t::replace),
                   " is not supported (supported: ", supported, ")"));
}

// Null and absent are the same.
const Json* Find(const Json& json, const char* name) {
  const auto it = json.find(name);
  return it == json.end() || it->is_null() ? nullptr : &*it;
}

absl::Status Read(const Json& json, const char* name, double low, double high,
                  std::optional<double>* out) {
  const Json* value = Find(json, name);
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_number() || !(value->get<double>() >= low) ||
      !(value->get<double>() <= high)) {
    return Refuse(name, *value,
                  absl::StrCat("a number from ", low, " to ", high));
  }
  *out = value->get<double>();
  return absl::OkStatus();
}

absl::Status Read(const Json& json, const char* name, int64_t low,
                  std::optional<int64_t>* out) {
  const Json* value = Find(json, name);
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_number_integer() || value->get<int64_t>() < low ||
      value->get<int64_t>() > kMaxCount) {
    return Refuse(name, *value,
                  absl::StrCat("an integer from ", low, " to ", kMaxCount));
  }
  *out = value->get<int64_t>();
  return absl::OkStatus();
}

absl::Status ReadEos(const Json& json, std::vector<int64_t>* out) {
  const Json* value = Find(json, "eos_token_id");
  if (value == nullptr) return absl::OkStatus();
  const Json list = value->is_array() ? *value : Json::array({*value});
  for (const Json& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 ||
        id.get<int64_t>() > kMaxCount) {
      return Refuse("eos_token_id", *value, "a token id or a list of them");
    }
    out->push_back(id.get<int64_t>());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<GenerationConfig> ParseGenerationConfig(const Json& json) {
  if (!json.is_object()) {
    return absl::InvalidArgumentError(
        "generation_config.json: not a JSON object");
  }
  GenerationConfig config;
  RING_RETURN_IF_ERROR(ReadEos(json, &config.eos_token_ids));
  if (const Json* value = Find(json, "do_sample")) {
    if (!value->is_boolean()) {
      return Refuse("do_sample", *value, "true or false");
    }
    config.do_sample = value->get<bool>();
  }
  RING_RETURN_IF_ERROR(Read(json, "temperature", 0, 100, &config.temperature));
  RING_RETURN_IF_ERROR(Read(json, "top_p", 1e-9, 1, &config.top_p));
  RING_RETURN_IF_ERROR(Read(json, "min_p", 0, 1, &config.min_p));
  RING_RETURN_IF_ERROR(Read(json, "top_k", 0, &config.top_k));
  RING_RETURN_IF_ERROR(
      Read(json, "repetition_penalty", 1e-3, 10, &config.repetition_penalty));
  RING_RETURN_IF_ERROR(Read(json, "max_new_tokens", 1, &config.max_new_tokens));
  return config;
}

absl::StatusOr<GenerationConfig> ReadGenerationConfig(
    const std::string& model_dir) {
  auto json = ReadJsonFile(absl::StrCat(model_dir, "/generation_config.json"),
                           kMaxFileBytes);
  if (absl::IsNotFound(json.status())) return GenerationConfig();
  RING_RETURN_IF_ERROR(json.status());
  return ParseGenerationConfig(*json);
}

}  // namespace ring
