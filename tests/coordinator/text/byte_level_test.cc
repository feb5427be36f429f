#include "coordinator/text/byte_level.h"

#include <set>
#include <string>

#include "gtest/gtest.h"

namespace ring {
namespace {

TEST(ByteLevelTest, KnownCharacters) {
  EXPECT_EQ(ByteToAlphabet('A'), "A");
  EXPECT_EQ(ByteToAlphabet('~'), "~");
  EXPECT_EQ(ByteToAlphabet(0x00), "\u0100");
  EXPECT_EQ(ByteToAlphabet('\n'), "\u010A");
  EXPECT_EQ(ByteToAlphabet(' '), "\u0120");
  EXPECT_EQ(ByteToAlphabet(0x7F), "\u0121");
  EXPECT_EQ(ByteToAlphabet(0xA0), "\u0142");
  EXPECT_EQ(ByteToAlphabet(0xA1), "\u00A1");
  EXPECT_EQ(ByteToAlphabet(0xAD), "\u0143");
  EXPECT_EQ(ByteToAlphabet(0xFF), "\u00FF");
}

TEST(ByteLevelTest, AllBytesGoThereAndBack) {
  std::set<std::string> characters;
  for (int byte = 0; byte < 256; ++byte) {
    const std::string character = ByteToAlphabet(static_cast<uint8_t>(byte));
    characters.insert(character);
    EXPECT_EQ(AlphabetToBytes(character),
              std::string(1, static_cast<char>(byte)));
  }
  EXPECT_EQ(characters.size(), 256u);
}

TEST(ByteLevelTest, RefusesOtherCharacters) {
  EXPECT_EQ(AlphabetToBytes("a b"), std::nullopt);
  EXPECT_EQ(AlphabetToBytes("\u0144"), std::nullopt);
  EXPECT_EQ(AlphabetToBytes("\u2581"), std::nullopt);
  EXPECT_EQ(AlphabetToBytes("\u0120the"), " the");
}

}  // namespace
}  // namespace ring
