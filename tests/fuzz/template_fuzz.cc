// A chat template over a conversation: parsed and rendered within its limits.
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "coordinator/text/jinja/interpreter.h"
#include "coordinator/text/jinja/parser.h"
#include "coordinator/text/jinja/value_json.h"
#include "kernels/base/check.h"

namespace {

constexpr char kVariables[] = R"({
  "messages": [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " What is 2 + 3?\n"},
    {"role": "assistant", "content": "", "reasoning_content": "2 + 3 = 5",
     "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2}}}]},
    {"role": "tool", "content": "5"}],
  "tools": [{"type": "function", "function": {"name": "add"}}],
  "add_generation_prompt": true, "enable_thinking": false,
  "bos_token": "<s>", "eos_token": "</s>"})";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace jinja = ring::jinja;
  static const jinja::Value variables =
      *jinja::ValueFromJson(kVariables, "variables");
  const auto body = jinja::Parse(
      absl::string_view(reinterpret_cast<const char*>(data), size));
  if (!body.ok()) return 0;
  jinja::Limits limits;
  limits.string_bytes = 1 << 16;
  limits.work = 100'000;
  const auto text = jinja::Render(*body, variables.dict(), absl::Now, limits);
  if (text.ok()) {
    RING_CHECK_LE(static_cast<int64_t>(text->size()), limits.string_bytes);
  }
  return 0;
}
