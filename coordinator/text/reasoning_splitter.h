// Splits generated text into reasoning ("<think> ... </think>") and answer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace ring {

class Tokenizer;

inline constexpr absl::string_view kThinkOpenTag = "<think>";
inline constexpr absl::string_view kThinkCloseTag = "</think>";

// True when generation that follows `prompt` starts inside the reasoning:
// `prompt` ends with "<think>" and perhaps white space. A "<think>" further
// back (in a message, or closed again) does not count.
bool PromptEndsInThinking(absl::string_view prompt);

// The ids of the two tags where the tokenizer has them as added tokens. They
// may be marked special, and a TextStream that feeds a ReasoningSplitter must
// not leave them out: pass these as TextStream::Options::keep_ids.
std::vector<int32_t> ReasoningTagIds(const Tokenizer& tokenizer);

// Sorts text that arrives in pieces into reasoning and answer.
//   - starts_in_thinking: all text up to the first "</think>" is reasoning. An
//     opening "<think>" may come first, after white space, and is dropped.
//   - otherwise: reasoning starts only if "<think>" is the first thing after
//     white space; any other beginning makes all of the text the answer, also
//     a "</think>" in it.
// After "</think>" everything is answer; further tags there are plain text.
// The tags, the newlines right after each of them, and the newlines right
// before "</think>" are in neither part. A tag may be cut anywhere between
// pieces: text is held back while it could be part of one, or of the newlines
// before one. Joined results do not depend on the cuts. Confined to one thread
// at a time.
class ReasoningSplitter {
 public:
  struct Text {
    std::string reasoning;
    std::string answer;
  };

  explicit ReasoningSplitter(bool starts_in_thinking);

  // What `delta` adds to either part. Whole UTF-8 characters give whole
  // UTF-8 characters.
  Text Append(absl::string_view delta);

  // The text still held back, now that no more follows; reasoning that was
  // never closed stays reasoning. Call once, last.
  Text Finish();

  // True while text that arrives now would be reasoning.
  bool in_reasoning() const;

 private:
  enum class State {
    kStart,          // nothing but white space or part of "<think>" seen
    kReasoningHead,  // newlines after "<think>" are being dropped
    kReasoning,
    kAnswerHead,  // newlines after "</think>" are being dropped
    kAnswer,
  };
  // Each sorts a beginning of *rest, cuts it off and may change the state;
  // false when it takes more text to go on.
  bool StepStart(absl::string_view* rest);
  bool StepReasoning(absl::string_view* rest, Text* text);

  const bool starts_in_thinking_;
  State state_ = State::kStart;
  // Reasoning: newlines that are dropped if "</think>" comes next.
  size_t newlines_ = 0;
  std::string held_;  // seen but not sorted: white space, part of a tag
};

}  // namespace ring
