#include "coordinator/text/stop_strings.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"

namespace ring {
namespace {

std::vector<size_t> FallbackTable(const std::string& text) {
  std::vector<size_t> fallback(text.size() + 1, 0);
  size_t length = 0;
  for (size_t i = 1; i < text.size(); ++i) {
    while (length > 0 && text[i] != text[length]) length = fallback[length];
    if (text[i] == text[length]) ++length;
    fallback[i + 1] = length;
  }
  return fallback;
}

}  // namespace

StopStrings::StopStrings(std::vector<std::string> stops) {
  for (std::string& stop : stops) {
    RING_CHECK(!stop.empty()) << "an empty stop string";
    Pattern pattern;
    pattern.fallback = FallbackTable(stop);
    pattern.text = std::move(stop);
    patterns_.push_back(std::move(pattern));
  }
}

std::string StopStrings::Append(absl::string_view delta) {
  if (matched() || delta.empty()) return "";
  held_.append(delta.data(), delta.size());
  if (patterns_.empty()) return std::exchange(held_, "");
  size_t longest_partial = 0;
  for (size_t i = held_.size() - delta.size(); i < held_.size(); ++i) {
    longest_partial = 0;
    size_t matched_bytes = 0;
    for (size_t p = 0; p < patterns_.size(); ++p) {
      Pattern& pattern = patterns_[p];
      size_t& length = pattern.matched_bytes;
      while (length > 0 && pattern.text[length] != held_[i]) {
        length = pattern.fallback[length];
      }
      if (pattern.text[length] == held_[i]) ++length;
      if (length == pattern.text.size() && length > matched_bytes) {
        matched_bytes = length;
        matched_ = static_cast<int>(p);
      }
      longest_partial = std::max(longest_partial, length);
    }
    if (matched()) {
      held_.resize(i + 1 - matched_bytes);
      return std::exchange(held_, "");
    }
  }
  std::string passed = held_.substr(0, held_.size() - longest_partial);
  held_.erase(0, passed.size());
  return passed;
}

std::string StopStrings::Finish() { return std::exchange(held_, ""); }

}  // namespace ring
