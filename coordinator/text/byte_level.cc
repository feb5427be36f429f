#include "coordinator/text/byte_level.h"

#include <array>

#include "coordinator/text/utf8.h"

namespace ring {
namespace {

constexpr int kNotInAlphabet = -1;

constexpr bool StandsForItself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
         byte >= 0xAE;
}

struct Alphabet {
  std::array<uint32_t, 256> code_point{};  // of each byte
  std::array<int, 512> byte{};             // of each code point, or -1

  constexpr Alphabet() {
    for (int& b : byte) b = kNotInAlphabet;
    uint32_t next = 256;
    for (int b = 0; b < 256; ++b) {
      code_point[b] = StandsForItself(b) ? static_cast<uint32_t>(b) : next++;
      byte[code_point[b]] = b;
    }
  }
};

constexpr Alphabet kAlphabet;

}  // namespace

std::string ByteToAlphabet(uint8_t byte) {
  std::string text;
  AppendCodePoint(kAlphabet.code_point[byte], &text);
  return text;
}

std::optional<std::string> AlphabetToBytes(absl::string_view token) {
  std::string bytes;
  for (size_t pos = 0; pos < token.size();) {
    const uint32_t code_point = NextCodePoint(token, &pos);
    if (code_point >= kAlphabet.byte.size()) return std::nullopt;
    const int byte = kAlphabet.byte[code_point];
    if (byte == kNotInAlphabet) return std::nullopt;
    bytes.push_back(static_cast<char>(byte));
  }
  return bytes;
}

}  // namespace ring
