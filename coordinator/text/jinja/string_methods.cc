#include "coordinator/text/jinja/string_methods.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "coordinator/text/jinja/operators.h"
#include "coordinator/text/utf8.h"
#include "kernels/base/status_macros.h"

namespace ring::jinja {
namespace {

using Kind = Value::Kind;

std::vector<Value> Strings(const std::vector<absl::string_view>& parts) {
  std::vector<Value> values;
  for (const absl::string_view part : parts) {
    values.push_back(Value::String(part));
  }
  return values;
}

// split() without a separator: at runs of white space, none at the ends.
std::vector<absl::string_view> SplitAtSpace(absl::string_view text,
                                            int64_t max_splits) {
  std::vector<absl::string_view> parts;
  size_t pos = 0;
  while (pos < text.size()) {
    size_t next = pos;
    if (IsSpace(NextCodePoint(text, &next))) {
      pos = next;
      continue;
    }
    const size_t begin = pos;
    if (static_cast<int64_t>(parts.size()) == max_splits) {
      parts.push_back(text.substr(begin));
      break;
    }
    for (pos = next; pos < text.size(); pos = next) {
      next = pos;
      if (IsSpace(NextCodePoint(text, &next))) break;
    }
    parts.push_back(text.substr(begin, pos - begin));
  }
  return parts;
}

std::vector<absl::string_view> SplitAt(absl::string_view text,
                                       absl::string_view separator,
                                       int64_t max_splits, bool from_right) {
  std::vector<absl::string_view> parts;
  while (max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits) {
    const size_t at = from_right ? text.rfind(separator) : text.find(separator);
    if (at == absl::string_view::npos) break;
    const size_t behind = at + separator.size();
    parts.push_back(from_right ? text.substr(behind) : text.substr(0, at));
    text = from_right ? text.substr(0, at) : text.substr(behind);
  }
  parts.push_back(text);
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

absl::StatusOr<Value> Split(absl::string_view name, const std::string& text,
                            const Arguments& arguments, Budget* budget) {
  const bool from_right = name == "rsplit";
  RING_ASSIGN_OR_RETURN(const BoundArguments bound,
                        BoundArguments::Bind(name, arguments,
                                             {{"sep", Value::None()},
                                              {"maxsplit", Value::Int(-1)}}));
  RING_ASSIGN_OR_RETURN(const int64_t max_splits, bound.Int(1));
  std::vector<absl::string_view> parts;
  if (bound[0].is(Kind::kNone)) {
    if (from_right && max_splits >= 0) {
      return absl::InvalidArgumentError(
          "rsplit: a limit without a separator is not supported");
    }
    parts = SplitAtSpace(text, max_splits);
  } else {
    RING_ASSIGN_OR_RETURN(const std::string separator, bound.String(0));
    if (separator.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": the separator is empty"));
    }
    parts = SplitAt(text, separator, max_splits, from_right);
  }
  RING_RETURN_IF_ERROR(budget->SpendItems(parts.size()));
  return Value::OfList(Strings(parts));
}

absl::StatusOr<Value> SplitLines(const std::string& text,
                                 const Arguments& arguments, Budget* budget) {
  RING_ASSIGN_OR_RETURN(
      const BoundArguments bound,
      BoundArguments::Bind("splitlines", arguments,
                           {{"keepends", Value::Bool(false)}}));
  const bool keep_ends = Truthy(bound[0]);
  const auto is_break = [](uint32_t c) {
    return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 ||
           c == 0x2028 || c == 0x2029;
  };
  std::vector<Value> lines;
  size_t begin = 0;
  for (size_t pos = 0; pos < text.size();) {
    const size_t end = pos;
    const uint32_t c = NextCodePoint(text, &pos);
    if (!is_break(c)) continue;
    if (c == '\r' && pos < text.size() && text[pos] == '\n') ++pos;
    lines.push_back(
        Value::String(text.substr(begin, (keep_ends ? pos : end) - begin)));
    begin = pos;
  }
  if (begin < text.size()) lines.push_back(Value::String(text.substr(begin)));
  RING_RETURN_IF_ERROR(budget->SpendItems(lines.size()));
  return Value::OfList(std::move(lines));
}

absl::StatusOr<Value> StripMethod(absl::string_view name,
                                  const std::string& text,
                                  const Arguments& arguments) {
  RING_ASSIGN_OR_RETURN(
      const BoundArguments bound,
      BoundArguments::Bind(name, arguments, {{"chars", Value::None()}}));
  const Side side = name == "lstrip"   ? Side::kLeft
                    : name == "rstrip" ? Side::kRight
                                       : Side::kBoth;
  if (bound[0].is(Kind::kNone)) {
    return Value::String(Strip(text, nullptr, side));
  }
  RING_ASSIGN_OR_RETURN(const std::string chars, bound.String(0));
  return Value::String(Strip(text, &chars, side));
}

// startswith and endswith: one string or a tuple of them.
absl::StatusOr<Value> HasAffix(absl::string_view name, const std::string& text,
                               const Arguments& arguments) {
  RING_ASSIGN_OR_RETURN(const BoundArguments bound,
                        BoundArguments::Bind(name, arguments, {{"affix"}}));
  std::vector<Value> affixes = {bound[0]};
  if (bound[0].is(Kind::kList) && bound[0].list().form == List::Form::kTuple) {
    affixes = bound[0].list().items;
  }
  bool found = false;
  for (const Value& affix : affixes) {
    if (!affix.is(Kind::kString)) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": a str or a tuple of str is needed, not a ",
                       TypeName(affix)));
    }
    found =
        found || (name == "startswith" ? absl::StartsWith(text, affix.string())
                                       : absl::EndsWith(text, affix.string()));
  }
  return Value::Bool(found);
}

// find, rfind, index, count of a part.
absl::StatusOr<Value> Locate(absl::string_view name, const std::string& text,
                             const Arguments& arguments) {
  RING_ASSIGN_OR_RETURN(const BoundArguments bound,
                        BoundArguments::Bind(name, arguments, {{"sub"}}));
  RING_ASSIGN_OR_RETURN(const std::string part, bound.String(0));
  if (name == "count") {
    if (part.empty()) {
      return Value::Int(static_cast<int64_t>(CountCodePoints(text)) + 1);
    }
    int64_t count = 0;
    for (size_t at = text.find(part); at != std::string::npos;
         at = text.find(part, at + part.size())) {
      ++count;
    }
    return Value::Int(count);
  }
  const size_t at = name == "rfind" ? text.rfind(part) : text.find(part);
  if (at != std::string::npos) {
    return Value::Int(static_cast<int64_t>(
        CountCodePoints(absl::string_view(text).substr(0, at))));
  }
  if (name == "index") return absl::InvalidArgumentError("index: not found");
  return Value::Int(-1);
}

absl::StatusOr<Value> Join(const std::string& text, const Arguments& arguments,
                           Budget* budget) {
  RING_ASSIGN_OR_RETURN(
      const BoundArguments bound,
      BoundArguments::Bind("join", arguments, {{"iterable"}}));
  RING_ASSIGN_OR_RETURN(const std::vector<Value> items,
                        Iterate(bound[0], budget));
  size_t bytes = 0;
  for (const Value& item : items) {
    if (!item.is(Kind::kString)) {
      return absl::InvalidArgumentError(
          absl::StrCat("join: an item is a ", TypeName(item), ", not a str"));
    }
    bytes += item.string().size() + text.size();
  }
  RING_RETURN_IF_ERROR(budget->SpendString(bytes));
  std::string joined;
  for (size_t i = 0; i < items.size(); ++i) {
    absl::StrAppend(&joined, i == 0 ? "" : text, items[i].string());
  }
  return Value::String(std::move(joined));
}

absl::StatusOr<Value> RemoveAffix(absl::string_view name,
                                  const std::string& text,
                                  const Arguments& arguments) {
  RING_ASSIGN_OR_RETURN(const BoundArguments bound,
                        BoundArguments::Bind(name, arguments, {{"affix"}}));
  RING_ASSIGN_OR_RETURN(const std::string affix, bound.String(0));
  if (name == "removeprefix" && absl::StartsWith(text, affix)) {
    return Value::String(text.substr(affix.size()));
  }
  if (name == "removesuffix" && absl::EndsWith(text, affix)) {
    return Value::String(text.substr(0, text.size() - affix.size()));
  }
  return Value::String(text);
}

absl::StatusOr<Value> ReplaceMethod(const std::string& text,
                                    const Arguments& arguments,
                                    Budget* budget) {
  RING_ASSIGN_OR_RETURN(
      const BoundArguments bound,
      BoundArguments::Bind("replace", arguments,
                           {{"old"}, {"new"}, {"count", Value::Int(-1)}}));
  RING_ASSIGN_OR_RETURN(const std::string from, bound.String(0));
  RING_ASSIGN_OR_RETURN(const std::string to, bound.String(1));
  RING_ASSIGN_OR_RETURN(const int64_t count, bound.Int(2));
  return Replace(text, from, to, count, budget);
}

absl::Status BeyondAscii() {
  return absl::InvalidArgumentError(
      "upper and lower case beyond ASCII are not supported");
}

bool IsAscii(const std::string& text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<uint8_t>(c) < 0x80; });
}

}  // namespace

bool IsSupportedStringMethod(absl::string_view name) {
  static constexpr absl::string_view kNames[] = {
      "capitalize",   "count",      "endswith",   "find",   "index",
      "isdigit",      "join",       "lower",      "lstrip", "removeprefix",
      "removesuffix", "replace",    "rfind",      "rsplit", "rstrip",
      "split",        "splitlines", "startswith", "strip",  "title",
      "upper"};
  return std::find(std::begin(kNames), std::end(kNames), name) !=
         std::end(kNames);
}

absl::StatusOr<Value> CallStringMethod(const std::string& text,
                                       absl::string_view name,
                                       const Arguments& arguments,
                                       Budget* budget) {
  RING_RETURN_IF_ERROR(budget->SpendString(text.size()));
  if (name == "split" || name == "rsplit") {
    return Split(name, text, arguments, budget);
  }
  if (name == "splitlines") return SplitLines(text, arguments, budget);
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    return StripMethod(name, text, arguments);
  }
  if (name == "startswith" || name == "endswith") {
    return HasAffix(name, text, arguments);
  }
  if (name == "find" || name == "rfind" || name == "index" || name == "count") {
    return Locate(name, text, arguments);
  }
  if (name == "join") return Join(text, arguments, budget);
  if (name == "replace") return ReplaceMethod(text, arguments, budget);
  if (name == "removeprefix" || name == "removesuffix") {
    return RemoveAffix(name, text, arguments);
  }
  // The rest takes no arguments.
  RING_RETURN_IF_ERROR(BoundArguments::Bind(name, arguments, {}).status());
  if (name == "upper") return ChangeCase(text, LetterCase::kUpper);
  if (name == "lower") return ChangeCase(text, LetterCase::kLower);
  if (name == "capitalize") return ChangeCase(text, LetterCase::kCapitalize);
  if (name == "title") return ChangeCase(text, LetterCase::kTitle);
  if (name == "isdigit") {
    if (!IsAscii(text)) return BeyondAscii();
    return Value::Bool(!text.empty() &&
                       std::all_of(text.begin(), text.end(), [](char c) {
                         return absl::ascii_isdigit(c);
                       }));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("str.", name, " is not supported"));
}

std::string Strip(absl::string_view text, const std::string* chars, Side side) {
  const auto strips = [chars](absl::string_view character) {
    size_t pos = 0;
    return chars == nullptr ? IsSpace(NextCodePoint(character, &pos))
                            : absl::StrContains(*chars, character);
  };
  while (side != Side::kRight && !text.empty()) {
    size_t bytes = 0;
    NextCodePoint(text, &bytes);
    if (!strips(text.substr(0, bytes))) break;
    text.remove_prefix(bytes);
  }
  while (side != Side::kLeft && !text.empty()) {
    size_t start = text.size() - 1;
    while ((static_cast<uint8_t>(text[start]) & 0xC0) == 0x80) --start;
    if (!strips(text.substr(start))) break;
    text = text.substr(0, start);
  }
  return std::string(text);
}

absl::StatusOr<Value> Replace(const std::string& text, const std::string& from,
                              const std::string& to, int64_t count,
                              Budget* budget) {
  // Where `from` is found; the empty text is found before every character and
  // at the end.
  std::vector<size_t> found;
  for (size_t pos = 0;
       count < 0 || static_cast<int64_t>(found.size()) < count;) {
    const size_t at = text.find(from, pos);
    if (at == std::string::npos) break;
    found.push_back(at);
    pos = at + from.size();
    if (!from.empty()) continue;
    if (at == text.size()) break;
    NextCodePoint(text, &pos);
  }
  RING_RETURN_IF_ERROR(
      budget->SpendString(text.size() + found.size() * to.size()));
  std::string out;
  size_t done = 0;
  for (const size_t at : found) {
    out.append(text, done, at - done);
    out += to;
    done = at + from.size();
  }
  out.append(text, done, std::string::npos);
  return Value::String(std::move(out));
}

absl::StatusOr<Value> ChangeCase(const std::string& text, LetterCase to) {
  if (!IsAscii(text)) return BeyondAscii();
  std::string out = text;
  bool starts_word = true;
  for (char& c : out) {
    const bool upper =
        to == LetterCase::kUpper || (to != LetterCase::kLower && starts_word);
    starts_word = to == LetterCase::kTitle && !absl::ascii_isalpha(c);
    c = upper ? absl::ascii_toupper(c) : absl::ascii_tolower(c);
  }
  return Value::String(std::move(out));
}

}  // namespace ring::jinja
