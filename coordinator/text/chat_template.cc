#include "coordinator/text/chat_template.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "coordinator/text/jinja/interpreter.h"
#include "coordinator/text/jinja/parser.h"
#include "coordinator/text/jinja/value_json.h"
#include "coordinator/text/utf8.h"
#include "kernels/base/status_macros.h"
#include "kernels/base/text_file.h"
#include "worker/model_files/json.h"

namespace ring {
namespace {

using jinja::Dict;
using jinja::Value;

constexpr int64_t kMaxFileBytes = int64_t{16} << 20;
constexpr absl::string_view kConfigFile = "tokenizer_config.json";
constexpr absl::string_view kTokenNames[] = {"bos_token", "eos_token",
                                             "pad_token", "unk_token"};

// "chat_template" of tokenizer_config.json; NOT_FOUND if it has none.
absl::StatusOr<std::string> TemplateOfConfig(const Json& config) {
  const auto found = config.find("chat_template");
  if (found == config.end() || found->is_null()) {
    return absl::NotFoundError(absl::StrCat(
        "no chat_template.jinja, and no chat_template in ", kConfigFile));
  }
  if (found->is_string()) return found->get<std::string>();
  if (found->is_array()) {
    for (const Json& entry : *found) {
      if (entry.is_object() && entry.value("name", Json()) == "default" &&
          entry.contains("template") && entry["template"].is_string()) {
        return entry["template"].get<std::string>();
      }
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat(kConfigFile,
                   ": chat_template is neither a string nor a "
                   "list with a template named \"default\""));
}

// A special token is a string, or an object with its "content".
absl::StatusOr<Dict> TokensOfConfig(const Json& config) {
  Dict tokens;
  for (const absl::string_view name : kTokenNames) {
    const auto found = config.find(std::string(name));
    if (found == config.end() || found->is_null()) continue;
    const Json content =
        found->is_object() ? found->value("content", Json()) : *found;
    if (!content.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(kConfigFile, ": ", name, " is not a string"));
    }
    tokens.Set(name, Value::String(content.get<std::string>()));
  }
  return tokens;
}

absl::StatusOr<Value> Utf8Value(absl::string_view text,
                                absl::string_view what) {
  const size_t valid = ValidUtf8Prefix(text);
  if (valid == text.size()) return Value::String(text);
  return absl::InvalidArgumentError(
      absl::StrCat(what, " is not UTF-8 at byte ", valid));
}

absl::StatusOr<Value> JsonArray(const std::string& json,
                                const std::string& what) {
  RING_ASSIGN_OR_RETURN(Value value, jinja::ValueFromJson(json, what));
  if (value.is(Value::Kind::kList)) return value;
  return absl::InvalidArgumentError(absl::StrCat(what, " is not a list"));
}

absl::StatusOr<Value> MessageValue(const ChatMessage& message,
                                   const std::string& what) {
  Dict fields;
  RING_ASSIGN_OR_RETURN(Value role, Utf8Value(message.role, what + ".role"));
  fields.Set("role", std::move(role));
  RING_ASSIGN_OR_RETURN(Value content,
                        Utf8Value(message.content, what + ".content"));
  fields.Set("content", std::move(content));
  if (message.reasoning_content.has_value()) {
    RING_ASSIGN_OR_RETURN(
        Value reasoning,
        Utf8Value(*message.reasoning_content, what + ".reasoning_content"));
    fields.Set("reasoning_content", std::move(reasoning));
  }
  if (!message.tool_calls_json.empty()) {
    RING_ASSIGN_OR_RETURN(
        Value calls, JsonArray(message.tool_calls_json, what + ".tool_calls"));
    fields.Set("tool_calls", std::move(calls));
  }
  return Value::Of(std::move(fields));
}

// Adds the members of the object `json`, none of which may be there already.
absl::Status AddExtraVariables(const std::string& json, Dict* variables) {
  if (json.empty()) return absl::OkStatus();
  RING_ASSIGN_OR_RETURN(const Value extra,
                        jinja::ValueFromJson(json, "extra variables"));
  if (!extra.is(Value::Kind::kDict)) {
    return absl::InvalidArgumentError("extra variables are not an object");
  }
  for (const auto& [name, value] : extra.dict().entries()) {
    if (variables->Find(name) != nullptr || name == "tools" ||
        name == "enable_thinking" || jinja::IsFunction(name)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the extra variable \"", name, "\" has a meaning already"));
    }
    variables->Set(name, value);
  }
  return absl::OkStatus();
}

}  // namespace

struct ChatTemplate::Parts {
  std::string source;
  jinja::Body body;
  Dict tokens;  // the variables of every rendering
  Clock clock;
};

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Load(
    const std::string& model_dir, Clock clock) {
  Json config = Json::object();
  const std::string config_path = absl::StrCat(model_dir, "/", kConfigFile);
  absl::StatusOr<Json> read = ReadJsonFile(config_path, kMaxFileBytes);
  if (read.ok()) {
    config = *std::move(read);
  } else if (!absl::IsNotFound(read.status())) {
    return read.status();
  }
  if (!config.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(config_path, " is not an object"));
  }
  absl::StatusOr<std::string> source =
      ReadTextFile(model_dir + "/chat_template.jinja", kMaxFileBytes);
  if (absl::IsNotFound(source.status())) source = TemplateOfConfig(config);
  if (!source.ok()) return source.status();
  absl::StatusOr<jinja::Body> body = jinja::Parse(*source);
  if (!body.ok()) {
    return absl::Status(
        body.status().code(),
        absl::StrCat("chat template: ", body.status().message()));
  }
  auto parts = std::make_unique<Parts>();
  RING_ASSIGN_OR_RETURN(parts->tokens, TokensOfConfig(config));
  parts->source = *std::move(source);
  parts->body = *std::move(body);
  parts->clock = std::move(clock);
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(std::move(parts)));
}

ChatTemplate::ChatTemplate(std::unique_ptr<const Parts> parts)
    : parts_(std::move(parts)) {}

ChatTemplate::~ChatTemplate() = default;

absl::StatusOr<std::string> ChatTemplate::Render(
    const ChatRequest& request) const {
  Dict variables = parts_->tokens;
  std::vector<Value> messages;
  for (size_t i = 0; i < request.messages.size(); ++i) {
    RING_ASSIGN_OR_RETURN(
        Value message,
        MessageValue(request.messages[i], absl::StrCat("messages[", i, "]")));
    messages.push_back(std::move(message));
  }
  variables.Set("messages", Value::OfList(std::move(messages)));
  // Hugging Face passes None, so that "if tools" works on every template.
  Value tools = Value::None();
  if (!request.tools_json.empty()) {
    RING_ASSIGN_OR_RETURN(tools, JsonArray(request.tools_json, "tools"));
  }
  variables.Set("tools", std::move(tools));
  variables.Set("documents", Value::None());
  variables.Set("add_generation_prompt",
                Value::Bool(request.add_generation_prompt));
  if (request.enable_thinking.has_value()) {
    variables.Set("enable_thinking", Value::Bool(*request.enable_thinking));
  }
  RING_RETURN_IF_ERROR(
      AddExtraVariables(request.extra_variables_json, &variables));
  absl::StatusOr<std::string> text =
      jinja::Render(parts_->body, variables, parts_->clock, jinja::Limits());
  if (text.ok()) return text;
  return absl::Status(text.status().code(),
                      absl::StrCat("chat template: ", text.status().message()));
}

absl::string_view ChatTemplate::source() const { return parts_->source; }

}  // namespace ring
