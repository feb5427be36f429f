#include "coordinator/text/utf8.h"

#include <utility>

namespace ring {
namespace {

// What the bytes at the start of a text are.
struct Sequence {
  size_t bytes;   // of the character, or of the maximal ill-formed part
  bool valid;     // a whole character
  bool complete;  // false: more bytes could make it a character
};

// Range that the second byte must be in after lead byte `lead`; the ranges
// exclude overlong forms, surrogates and values above U+10FFFF.
struct SecondByte {
  uint8_t low;
  uint8_t high;
};
SecondByte SecondByteAfter(uint8_t lead) {
  switch (lead) {
    case 0xE0:
      return {0xA0, 0xBF};
    case 0xED:
      return {0x80, 0x9F};
    case 0xF0:
      return {0x90, 0xBF};
    case 0xF4:
      return {0x80, 0x8F};
    default:
      return {0x80, 0xBF};
  }
}

size_t SequenceBytes(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xE0) return 2;
  return lead < 0xF0 ? 3 : 4;
}

// REQUIRES: `text` is not empty.
Sequence Classify(absl::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {1, true, true};
  if (lead < 0xC2 || lead > 0xF4) return {1, false, true};
  const size_t wanted = SequenceBytes(lead);
  const SecondByte second = SecondByteAfter(lead);
  for (size_t i = 1; i < wanted; ++i) {
    if (i == text.size()) return {i, false, false};
    const uint8_t low = i == 1 ? second.low : 0x80;
    const uint8_t high = i == 1 ? second.high : 0xBF;
    if (byte(i) < low || byte(i) > high) return {i, false, true};
  }
  return {wanted, true, true};
}

}  // namespace

size_t ValidUtf8Prefix(absl::string_view text) {
  size_t pos = 0;
  while (pos < text.size()) {
    if (static_cast<uint8_t>(text[pos]) < 0x80) {
      ++pos;
      continue;
    }
    const Sequence sequence = Classify(text.substr(pos));
    if (!sequence.valid) return pos;
    pos += sequence.bytes;
  }
  return pos;
}

uint32_t NextCodePoint(absl::string_view text, size_t* pos) {
  const uint8_t lead = static_cast<uint8_t>(text[*pos]);
  const size_t bytes = SequenceBytes(lead);
  // The lead byte of n > 1 bytes carries 7 - n bits, the others 6 each.
  uint32_t code_point = bytes == 1 ? lead : lead & ((1u << (7 - bytes)) - 1);
  for (size_t i = 1; i < bytes; ++i) {
    code_point =
        code_point << 6 | (static_cast<uint8_t>(text[*pos + i]) & 0x3F);
  }
  *pos += bytes;
  return code_point;
}

void AppendCodePoint(uint32_t code_point, std::string* out) {
  const auto append = [out](uint32_t byte) {
    out->push_back(static_cast<char>(byte));
  };
  if (code_point < 0x80) {
    append(code_point);
  } else if (code_point < 0x800) {
    append(0xC0 | code_point >> 6);
    append(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    append(0xE0 | code_point >> 12);
    append(0x80 | (code_point >> 6 & 0x3F));
    append(0x80 | (code_point & 0x3F));
  } else {
    append(0xF0 | code_point >> 18);
    append(0x80 | (code_point >> 12 & 0x3F));
    append(0x80 | (code_point >> 6 & 0x3F));
    append(0x80 | (code_point & 0x3F));
  }
}

size_t CountCodePoints(absl::string_view text) {
  size_t count = 0;
  for (const char c : text) {
    if ((static_cast<uint8_t>(c) & 0xC0) != 0x80) ++count;
  }
  return count;
}

bool IsSpace(uint32_t code_point) {
  if (code_point <= 0x20) {
    return code_point == 0x20 || (code_point >= 0x09 && code_point <= 0x0D) ||
           (code_point >= 0x1C && code_point <= 0x1F);
  }
  return code_point == 0x85 || code_point == 0xA0 || code_point == 0x1680 ||
         (code_point >= 0x2000 && code_point <= 0x200A) ||
         code_point == 0x2028 || code_point == 0x2029 || code_point == 0x202F ||
         code_point == 0x205F || code_point == 0x3000;
}

void Utf8Repairer::Append(absl::string_view bytes, std::string* out) {
  std::string joined;
  if (!pending_.empty()) {
    joined = std::move(pending_);
    pending_.clear();
    joined.append(bytes.data(), bytes.size());
    bytes = joined;
  }
  while (!bytes.empty()) {
    const size_t valid = ValidUtf8Prefix(bytes);
    out->append(bytes.data(), valid);
    bytes.remove_prefix(valid);
    if (bytes.empty()) return;
    const Sequence bad = Classify(bytes);
    if (!bad.complete) {
      pending_.assign(bytes.data(), bytes.size());
      return;
    }
    out->append(kReplacementCharacter.data(), kReplacementCharacter.size());
    bytes.remove_prefix(bad.bytes);
  }
}

void Utf8Repairer::Finish(std::string* out) {
  if (pending_.empty()) return;
  out->append(kReplacementCharacter.data(), kReplacementCharacter.size());
  pending_.clear();
}

}  // namespace ring
