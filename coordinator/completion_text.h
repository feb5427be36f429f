// From generated token ids to what the client reads.
#pragma once

#include <cstdint>
#include <string>

#include "coordinator/request_limits.h"
#include "coordinator/served_model.h"
#include "coordinator/text/reasoning_splitter.h"
#include "coordinator/text/stop_strings.h"
#include "coordinator/text/text_stream.h"

namespace ring {

// Decodes one completion as it grows, looks for stop strings in the text after
// its first min_tokens tokens, and sorts all text into reasoning and answer.
// What may become part of a character, a stop string or a tag is held back
// until it is decided. Confined to one thread at a time.
class CompletionText {
 public:
  struct Text {
    std::string reasoning;
    std::string answer;
  };

  // `model` must outlive this.
  CompletionText(const ServedModel* model, const RequestOptions& options,
                 bool starts_in_thinking);

  // Adds the text of one token to *text. Once stopped(), call no more.
  void Append(int32_t id, Text* text);

  // Adds all that was held back. Call once, last; also after stopped().
  void Finish(Text* text);

  // A stop string is complete; its index in the request's list.
  bool stopped() const { return stop_strings_.matched(); }
  int stop_string() const { return stop_strings_.matched_index(); }

  // True while text that arrives now would be reasoning.
  bool in_reasoning() const;

 private:
  // Sorts text that the stop strings have let through.
  void Sort(const std::string& passed, Text* text);

  const bool split_reasoning_;
  int64_t unsearched_tokens_;  // to come, before stop strings count
  TextStream decoder_;
  StopStrings stop_strings_;
  ReasoningSplitter splitter_;
};

}  // namespace ring
