// A tokenizer.json if it begins like one, else a text through the bundled
// tokenizer and back.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/utf8.h"
#include "kernels/base/check.h"

namespace {

void RoundTrip(absl::string_view text) {
  static const ring::Tokenizer* const tokenizer =
      ring::Tokenizer::Load(RING_TEST_DATA "/ring-tiny")->release();
  for (const auto mode :
       {ring::AddedTokens::kPlainText, ring::AddedTokens::kRecognise}) {
    const auto ids = tokenizer->Encode(text, mode);
    RING_CHECK_EQ(ids.ok(), ring::ValidUtf8Prefix(text) == text.size());
    if (!ids.ok()) continue;
    for (const int32_t id : *ids) {
      RING_CHECK(id >= 0 && id < tokenizer->num_token_ids());
      // The text of a user never becomes a control token.
      RING_CHECK(mode == ring::AddedTokens::kRecognise ||
                 !tokenizer->IsSpecial(id));
    }
    RING_CHECK(tokenizer->Decode(*ids, /*keep_special=*/true) == text);
    if (mode != ring::AddedTokens::kPlainText) continue;
    const std::string guarded = tokenizer->Guard(text);
    RING_CHECK(ring::Tokenizer::Unguard(guarded) == text);
    RING_CHECK(*tokenizer->Encode(guarded, ring::AddedTokens::kGuarded) ==
               *ids);
  }
}

void Parse(absl::string_view json) {
  const auto tokenizer = ring::Tokenizer::FromJson(json);
  if (!tokenizer.ok()) return;
  const auto ids = (*tokenizer)
                       ->Encode("Hello 123 <think>\n\t w\xc3\xb6rld",
                                ring::AddedTokens::kRecognise);
  if (ids.ok()) (*tokenizer)->Decode(*ids, /*keep_special=*/true);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  if (!text.empty() && text[0] == '{') {
    Parse(text);
  } else {
    RoundTrip(text);
  }
  return 0;
}
