#include "coordinator/text/reasoning_splitter.h"

#include <algorithm>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/utf8.h"

namespace ring {
namespace {

// Length of the white space that `text` starts with.
size_t LeadingSpaceBytes(absl::string_view text) {
  size_t pos = 0;
  while (pos < text.size()) {
    size_t next = pos;
    if (!IsSpace(NextCodePoint(text, &next))) break;
    pos = next;
  }
  return pos;
}

// Cuts newlines off the start; true if other text is left.
bool DropNewlines(absl::string_view* rest) {
  while (absl::ConsumePrefix(rest, "\n")) {
  }
  return !rest->empty();
}

}  // namespace

bool PromptEndsInThinking(absl::string_view prompt) {
  const size_t tag = prompt.rfind(kThinkOpenTag);
  if (tag == absl::string_view::npos) return false;
  const absl::string_view tail = prompt.substr(tag + kThinkOpenTag.size());
  return LeadingSpaceBytes(tail) == tail.size();
}

std::vector<int32_t> ReasoningTagIds(const Tokenizer& tokenizer) {
  std::vector<int32_t> ids;
  for (const absl::string_view tag : {kThinkOpenTag, kThinkCloseTag}) {
    const std::optional<int32_t> id = tokenizer.AddedTokenId(tag);
    if (id.has_value()) ids.push_back(*id);
  }
  return ids;
}

ReasoningSplitter::ReasoningSplitter(bool starts_in_thinking)
    : starts_in_thinking_(starts_in_thinking) {}

ReasoningSplitter::Text ReasoningSplitter::Append(absl::string_view delta) {
  held_.append(delta.data(), delta.size());
  absl::string_view rest = held_;
  Text text;
  bool more = true;
  while (more && !rest.empty()) {
    switch (state_) {
      case State::kStart:
        more = StepStart(&rest);
        break;
      case State::kReasoningHead:
        if (DropNewlines(&rest)) state_ = State::kReasoning;
        break;
      case State::kReasoning:
        more = StepReasoning(&rest, &text);
        break;
      case State::kAnswerHead:
        if (DropNewlines(&rest)) state_ = State::kAnswer;
        break;
      case State::kAnswer:
        text.answer.append(rest.data(), rest.size());
        rest = absl::string_view();
        break;
    }
  }
  held_ = std::string(rest);
  return text;
}

ReasoningSplitter::Text ReasoningSplitter::Finish() {
  Text text;
  std::string& part = in_reasoning() ? text.reasoning : text.answer;
  part.append(newlines_, '\n');
  part.append(held_);
  newlines_ = 0;
  held_.clear();
  return text;
}

bool ReasoningSplitter::in_reasoning() const {
  return state_ == State::kReasoningHead || state_ == State::kReasoning ||
         (state_ == State::kStart && starts_in_thinking_);
}

bool ReasoningSplitter::StepStart(absl::string_view* rest) {
  absl::string_view text = *rest;
  text.remove_prefix(LeadingSpaceBytes(text));
  if (absl::ConsumePrefix(&text, kThinkOpenTag)) {
    *rest = text;
    state_ = State::kReasoningHead;
    return true;
  }
  if (absl::StartsWith(kThinkOpenTag, text)) return false;
  state_ = starts_in_thinking_ ? State::kReasoningHead : State::kAnswer;
  return true;
}

bool ReasoningSplitter::StepReasoning(absl::string_view* rest, Text* text) {
  while (!rest->empty()) {
    if (absl::ConsumePrefix(rest, "\n")) {
      ++newlines_;
      continue;
    }
    if (absl::ConsumePrefix(rest, kThinkCloseTag)) {
      newlines_ = 0;
      state_ = State::kAnswerHead;
      return true;
    }
    if (absl::StartsWith(kThinkCloseTag, *rest)) return false;
    // Plain text: at least one byte, up to what may be held back again.
    const size_t plain = std::min(rest->find_first_of("\n<", 1), rest->size());
    text->reasoning.append(newlines_, '\n');
    text->reasoning.append(rest->data(), plain);
    newlines_ = 0;
    rest->remove_prefix(plain);
  }
  return true;
}

}  // namespace ring
