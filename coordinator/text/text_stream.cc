#include "coordinator/text/text_stream.h"

#include <algorithm>
#include <utility>

namespace ring {

TextStream::TextStream(const Tokenizer* tokenizer, Options options)
    : tokenizer_(tokenizer), options_(std::move(options)) {}

std::string TextStream::Append(absl::Span<const int32_t> ids) {
  std::string text;
  for (const int32_t id : ids) {
    if (Keeps(id)) repairer_.Append(tokenizer_->TokenBytes(id), &text);
  }
  return text;
}

std::string TextStream::Finish() {
  std::string text;
  repairer_.Finish(&text);
  return text;
}

bool TextStream::Keeps(int32_t id) const {
  if (options_.keep_special || !tokenizer_->IsSpecial(id)) return true;
  return std::find(options_.keep_ids.begin(), options_.keep_ids.end(), id) !=
         options_.keep_ids.end();
}

}  // namespace ring
