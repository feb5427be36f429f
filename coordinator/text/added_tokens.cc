#include "coordinator/text/added_tokens.h"

#include <algorithm>

#include "coordinator/text/utf8.h"

namespace ring {
namespace {

bool IsContinuation(char c) { return (static_cast<uint8_t>(c) & 0xC0) == 0x80; }

// Start of the white space that text[0, end) ends with, not before `begin`.
size_t SpaceBefore(absl::string_view text, size_t begin, size_t end) {
  while (end > begin) {
    size_t start = end - 1;
    while (start > begin && IsContinuation(text[start])) --start;
    size_t pos = start;
    if (!IsSpace(NextCodePoint(text, &pos))) break;
    end = start;
  }
  return end;
}

// End of the white space that starts at `pos`.
size_t SpaceAfter(absl::string_view text, size_t pos) {
  while (pos < text.size()) {
    size_t next = pos;
    if (!IsSpace(NextCodePoint(text, &next))) break;
    pos = next;
  }
  return pos;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(const std::vector<AddedToken>& tokens)
    : tokens_(tokens) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    Trie& trie = tokens_[i].normalized ? second_ : first_;
    trie.Add(tokens_[i].content, static_cast<int32_t>(i));
  }
}

void AddedTokenMatcher::Split(absl::string_view text,
                              absl::FunctionRef<void(absl::string_view)> plain,
                              absl::FunctionRef<void(int32_t)> token) const {
  SplitBy(
      first_, text,
      [&](absl::string_view rest) { SplitBy(second_, rest, plain, token); },
      token);
}

void AddedTokenMatcher::SplitBy(
    const Trie& trie, absl::string_view text,
    absl::FunctionRef<void(absl::string_view)> plain,
    absl::FunctionRef<void(int32_t)> token) const {
  size_t done = 0;
  for (size_t pos = 0; pos < text.size();) {
    const int32_t match = trie.Longest(text.substr(pos));
    if (match < 0) {
      ++pos;
      continue;
    }
    const AddedToken& found = tokens_[match];
    const size_t begin = found.lstrip ? SpaceBefore(text, done, pos) : pos;
    size_t end = pos + found.content.size();
    if (found.rstrip) end = SpaceAfter(text, end);
    if (begin > done) plain(text.substr(done, begin - done));
    token(found.id);
    done = pos = end;
  }
  if (done < text.size()) plain(text.substr(done));
}

void AddedTokenMatcher::Trie::Add(absl::string_view content, int32_t token) {
  uint32_t node = 0;
  for (const char c : content) {
    const uint32_t fresh = static_cast<uint32_t>(nodes.size());
    const auto [child, inserted] =
        nodes[node].children.try_emplace(static_cast<uint8_t>(c), fresh);
    node = child->second;
    if (inserted) nodes.emplace_back();
  }
  nodes[node].token = token;
}

int32_t AddedTokenMatcher::Trie::Longest(absl::string_view text) const {
  int32_t longest = -1;
  uint32_t node = 0;
  for (const char c : text) {
    const auto& children = nodes[node].children;
    const auto child = children.find(static_cast<uint8_t>(c));
    if (child == children.end()) break;
    node = child->second;
    if (nodes[node].token >= 0) longest = nodes[node].token;
  }
  return longest;
}

}  // namespace ring
