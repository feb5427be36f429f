// Chat messages to the prompt text a model was trained on: runs the Jinja
// template that ships with the model.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace ring {

// JSON is passed as text because the order of keys is part of the prompt.
// An empty string means "not given".
struct ChatMessage {
  std::string role;     // "system", "user", "assistant", "tool"
  std::string content;  // UTF-8
  std::optional<std::string> reasoning_content;
  std::string tool_calls_json;  // array, as in the OpenAI chat format
};

struct ChatRequest {
  std::vector<ChatMessage> messages;
  std::string tools_json;  // array of JSON schema functions
  bool add_generation_prompt = true;
  std::optional<bool> enable_thinking;  // absent: undefined in the template
  // Object; each member becomes a variable of the template. The names that
  // the fields above and the special tokens define are refused.
  std::string extra_variables_json;
};

// Immutable after loading; Render may be called from any thread.
class ChatTemplate {
 public:
  // What strftime_now() of a template sees. Must be thread-safe.
  using Clock = std::function<absl::Time()>;

  // Reads the template of a Hugging Face folder: chat_template.jinja if it
  // exists, else "chat_template" of tokenizer_config.json (a string, or a list
  // of {name, template} of which "default" is taken). bos_token, eos_token,
  // pad_token and unk_token are variables as tokenizer_config.json has them.
  // NOT_FOUND: the model ships no template. INVALID_ARGUMENT: damaged, or it
  // uses something of Jinja that is not supported, named with its line.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Load(
      const std::string& model_dir, Clock clock = absl::Now);

  ~ChatTemplate();
  ChatTemplate(const ChatTemplate&) = delete;
  ChatTemplate& operator=(const ChatTemplate&) = delete;

  // The prompt text, special tokens spelled out; encode it with
  // AddedTokens::kRecognise, or kGuarded where the messages are guarded.
  // INVALID_ARGUMENT: the template raised an exception (its own message is
  // quoted) or failed on these messages, with the line; text that is not UTF-8;
  // JSON that does not parse. RESOURCE_EXHAUSTED: more work or output than the
  // limits of jinja/interpreter.h.
  absl::StatusOr<std::string> Render(const ChatRequest& request) const;

  // The Jinja source, for digests and diagnosis.
  absl::string_view source() const;

 private:
  struct Parts;
  explicit ChatTemplate(std::unique_ptr<const Parts> parts);

  const std::unique_ptr<const Parts> parts_;
};

}  // namespace ring
