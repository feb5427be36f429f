#include "coordinator/completion_text.h"

namespace ring {
namespace {

// Appends what the splitter gives.
void Add(const ReasoningSplitter::Text& piece, CompletionText::Text* text) {
  text->reasoning += piece.reasoning;
  text->answer += piece.answer;
}

}  // namespace

CompletionText::CompletionText(const ServedModel* model,
                               const RequestOptions& options,
                               bool starts_in_thinking)
    : split_reasoning_(options.split_reasoning),
      unsearched_tokens_(options.min_tokens),
      decoder_(model->tokenizer.get(),
               {.keep_special = options.special_tokens,
                .keep_ids = ReasoningTagIds(*model->tokenizer)}),
      stop_strings_(options.stop_strings),
      splitter_(starts_in_thinking) {}

void CompletionText::Append(int32_t id, Text* text) {
  const std::string decoded = decoder_.Append({id});
  if (unsearched_tokens_ > 0) {
    --unsearched_tokens_;
    Sort(decoded, text);
  } else {
    Sort(stop_strings_.Append(decoded), text);
  }
}

void CompletionText::Finish(Text* text) {
  if (!stopped()) {
    Sort(stop_strings_.Append(decoder_.Finish()), text);
    if (!stopped()) Sort(stop_strings_.Finish(), text);
  }
  if (split_reasoning_) Add(splitter_.Finish(), text);
}

bool CompletionText::in_reasoning() const {
  return split_reasoning_ && splitter_.in_reasoning();
}

void CompletionText::Sort(const std::string& passed, Text* text) {
  if (split_reasoning_) {
    Add(splitter_.Append(passed), text);
  } else {
    text->answer += passed;
  }
}

}  // namespace ring
