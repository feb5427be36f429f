#include "coordinator/text/jinja/lexer.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "coordinator/text/utf8.h"
#include "kernels/base/status_macros.h"

namespace ring::jinja {
namespace {

constexpr absl::string_view kTwoCharacterOperators[] = {
    "//", "**", "==", "!=", ">=", "<="};
constexpr absl::string_view kOneCharacterOperators = "+-/*%~[](){}><=.:|,;";

// Line ends become "\n"; one at the very end is dropped.
std::string NormaliseNewlines(absl::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out.push_back(source[i]);
      continue;
    }
    out.push_back('\n');
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (absl::EndsWith(out, "\n")) out.pop_back();
  return out;
}

bool IsNameStart(char c) { return absl::ascii_isalpha(c) || c == '_'; }
bool IsNamePart(char c) { return absl::ascii_isalnum(c) || c == '_'; }

class Lexer {
 public:
  explicit Lexer(absl::string_view source)
      : source_(NormaliseNewlines(source)) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (pos_ < source_.size()) {
      const size_t tag = FindTag();
      if (tag == std::string::npos) {
        AddText(Rest());
        pos_ = source_.size();
        break;
      }
      RING_RETURN_IF_ERROR(ReadTag(tag));
    }
    Add(Token::Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  absl::string_view Rest() const {
    return absl::string_view(source_).substr(pos_);
  }
  bool At(absl::string_view what) const {
    return absl::StartsWith(Rest(), what);
  }

  void Add(Token::Kind kind, std::string text) {
    tokens_.push_back({kind, std::move(text), line_});
  }
  void AddText(absl::string_view text) {
    if (!text.empty()) Add(Token::Kind::kText, std::string(text));
  }

  // Moves on and counts lines.
  void Advance(size_t bytes) {
    const auto begin = source_.begin() + static_cast<std::ptrdiff_t>(pos_);
    line_ += static_cast<int>(
        std::count(begin, begin + static_cast<std::ptrdiff_t>(bytes), '\n'));
    pos_ += bytes;
  }
  void SkipSpace() {
    size_t end = pos_;
    while (end < source_.size()) {
      size_t next = end;
      if (!IsSpace(NextCodePoint(source_, &next))) break;
      end = next;
    }
    Advance(end - pos_);
  }

  // Position of the next "{{", "{%" or "{#".
  size_t FindTag() const {
    for (size_t at = source_.find('{', pos_); at != std::string::npos;
         at = source_.find('{', at + 1)) {
      if (at + 1 < source_.size() &&
          absl::StrContains("{%#",
                            absl::string_view(source_).substr(at + 1, 1))) {
        return at;
      }
    }
    return std::string::npos;
  }

  // The text before the tag at `tag`, then the tag.
  absl::Status ReadTag(size_t tag) {
    const char type = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
    absl::string_view text =
        absl::string_view(source_).substr(pos_, tag - pos_);
    if (sign == '-') {
      text = StripRight(text);
    } else if (sign != '+' && type != '{') {
      text = StripIndent(text);
    }
    AddText(text);
    Advance(tag - pos_);
    const int begin_line = line_;
    Advance(sign == '-' || sign == '+' ? 3 : 2);
    if (type == '#') return SkipComment(begin_line);
    const bool print = type == '{';
    Add(print ? Token::Kind::kPrintBegin : Token::Kind::kTagBegin, "");
    return ReadInside(print, begin_line);
  }

  static absl::string_view StripRight(absl::string_view text) {
    while (!text.empty()) {
      size_t start = text.size() - 1;
      while ((static_cast<uint8_t>(text[start]) & 0xC0) == 0x80) --start;
      size_t pos = start;
      if (!IsSpace(NextCodePoint(text, &pos))) break;
      text = text.substr(0, start);
    }
    return text;
  }

  // lstrip_blocks: drops white space between the start of the tag's line and
  // the tag, if there is nothing else.
  absl::string_view StripIndent(absl::string_view text) const {
    const size_t newline = text.rfind('\n');
    if (newline == absl::string_view::npos) {
      return line_starts_ && StripRight(text).empty() ? text.substr(0, 0)
                                                      : text;
    }
    const size_t line_begin = newline + 1;
    return StripRight(text.substr(line_begin)).empty()
               ? text.substr(0, line_begin)
               : text;
  }

  // Moves behind the end `close` ("%}", "}}", "#}") of a tag, if it is here,
  // and the white space that its sign takes away.
  bool SkipTagEnd(absl::string_view close) {
    const bool print = close == "}}";
    const size_t begin = pos_;
    if (At(absl::StrCat("-", close))) {
      Advance(1 + close.size());
      SkipSpace();
    } else if (!print && At(absl::StrCat("+", close))) {
      Advance(1 + close.size());
    } else if (At(close)) {
      Advance(close.size());
      // trim_blocks
      if (!print && At("\n")) Advance(1);
    } else {
      return false;
    }
    line_starts_ = pos_ > begin && source_[pos_ - 1] == '\n';
    return true;
  }

  absl::Status SkipComment(int begin_line) {
    // The sign before "#}" belongs to the end.
    for (; pos_ < source_.size(); Advance(1)) {
      if (SkipTagEnd("#}")) return absl::OkStatus();
    }
    return ErrorAtLine(begin_line, "a comment that is not closed");
  }

  absl::Status ReadInside(bool print, int begin_line) {
    const absl::string_view close = print ? "}}" : "%}";
    std::string brackets;  // the closing ones that are due
    for (;;) {
      const int line = line_;
      if (brackets.empty() && SkipTagEnd(close)) {
        tokens_.push_back(
            {print ? Token::Kind::kPrintEnd : Token::Kind::kTagEnd, "", line});
        return absl::OkStatus();
      }
      if (pos_ >= source_.size()) {
        return ErrorAtLine(begin_line, "a tag that is not closed");
      }
      const size_t before = pos_;
      SkipSpace();
      if (pos_ > before) continue;
      const char c = source_[pos_];
      if (absl::ascii_isdigit(c)) {
        RING_RETURN_IF_ERROR(ReadNumber());
      } else if (IsNameStart(c)) {
        ReadName();
      } else if (c == '"' || c == '\'') {
        RING_RETURN_IF_ERROR(ReadString(c));
      } else {
        RING_RETURN_IF_ERROR(ReadOperator(&brackets));
      }
    }
  }

  void ReadName() {
    size_t end = pos_;
    while (end < source_.size() && IsNamePart(source_[end])) ++end;
    Add(Token::Kind::kName, source_.substr(pos_, end - pos_));
    Advance(end - pos_);
  }

  absl::Status ReadNumber() {
    const auto digits = [this](size_t at) {
      while (at < source_.size() && absl::ascii_isdigit(source_[at])) ++at;
      return at;
    };
    const auto is_digit = [this](size_t at) {
      return at < source_.size() && absl::ascii_isdigit(source_[at]);
    };
    size_t end = digits(pos_);
    bool is_float = false;
    // In "x.0.1" the numbers are subscripts.
    const bool subscript = pos_ > 0 && source_[pos_ - 1] == '.';
    if (!subscript && end < source_.size()) {
      if (source_[end] == '.' && is_digit(end + 1)) {
        end = digits(end + 1);
        is_float = true;
      }
      if (end < source_.size() &&
          (source_[end] == 'e' || source_[end] == 'E')) {
        size_t exponent = end + 1;
        if (exponent < source_.size() &&
            (source_[exponent] == '+' || source_[exponent] == '-')) {
          ++exponent;
        }
        if (is_digit(exponent)) {
          end = digits(exponent);
          is_float = true;
        }
      }
    }
    if (end < source_.size() && IsNamePart(source_[end])) {
      return ErrorAtLine(line_, "a number in a form that is not supported");
    }
    Add(is_float ? Token::Kind::kFloat : Token::Kind::kInteger,
        source_.substr(pos_, end - pos_));
    Advance(end - pos_);
    return absl::OkStatus();
  }

  absl::Status ReadString(char quote) {
    const int line = line_;
    std::string text;
    size_t at = pos_ + 1;
    while (at < source_.size() && source_[at] != quote) {
      if (source_[at] != '\\') {
        text.push_back(source_[at++]);
        continue;
      }
      RING_RETURN_IF_ERROR(ReadEscape(&at, &text));
    }
    if (at >= source_.size()) {
      return ErrorAtLine(line, "a string that is not closed");
    }
    Add(Token::Kind::kString, std::move(text));
    Advance(at + 1 - pos_);
    return absl::OkStatus();
  }

  // The escape sequences of Python strings; an unknown one stands for itself.
  absl::Status ReadEscape(size_t* at, std::string* text) {
    constexpr absl::string_view kNames = "abfnrtv\\'\"";
    constexpr absl::string_view kValues = "\a\b\f\n\r\t\v\\'\"";
    ++*at;
    if (*at >= source_.size()) return absl::OkStatus();  // not closed
    const char c = source_[*at];
    const size_t simple = kNames.find(c);
    if (simple != absl::string_view::npos) {
      text->push_back(kValues[simple]);
      ++*at;
      return absl::OkStatus();
    }
    if (c == '\n') {
      ++*at;
      return absl::OkStatus();
    }
    if (c == 'N' || (c >= '0' && c <= '7')) {
      return ErrorAtLine(line_, absl::StrCat("the escape \\", std::string(1, c),
                                             " in a string is not supported"));
    }
    const size_t hex_digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (hex_digits == 0) {
      text->push_back('\\');
      return absl::OkStatus();
    }
    const std::string hex = source_.substr(*at + 1, hex_digits);
    uint32_t code_point = 0;
    if (hex.size() != hex_digits ||
        !std::all_of(hex.begin(), hex.end(), absl::ascii_isxdigit) ||
        !absl::SimpleHexAtoi(hex, &code_point) || code_point > 0x10FFFF ||
        (code_point >= 0xD800 && code_point < 0xE000)) {
      return ErrorAtLine(line_, "an escape in a string that is no character");
    }
    AppendCodePoint(code_point, text);
    *at += 1 + hex_digits;
    return absl::OkStatus();
  }

  absl::Status ReadOperator(std::string* brackets) {
    for (const absl::string_view op : kTwoCharacterOperators) {
      if (At(op)) {
        Add(Token::Kind::kOperator, std::string(op));
        Advance(op.size());
        return absl::OkStatus();
      }
    }
    const char c = source_[pos_];
    if (!absl::StrContains(kOneCharacterOperators,
                           absl::string_view(&source_[pos_], 1))) {
      return ErrorAtLine(
          line_, absl::StrCat("unexpected character '", CharacterHere(), "'"));
    }
    if (c == '(') brackets->push_back(')');
    if (c == '[') brackets->push_back(']');
    if (c == '{') brackets->push_back('}');
    if (c == ')' || c == ']' || c == '}') {
      if (brackets->empty() || brackets->back() != c) {
        return ErrorAtLine(
            line_, absl::StrCat("unexpected '", std::string(1, c), "'"));
      }
      brackets->pop_back();
    }
    Add(Token::Kind::kOperator, std::string(1, c));
    Advance(1);
    return absl::OkStatus();
  }

  std::string CharacterHere() const {
    size_t end = pos_;
    NextCodePoint(source_, &end);
    return source_.substr(pos_, end - pos_);
  }

  const std::string source_;
  size_t pos_ = 0;
  int line_ = 1;
  // The last tag ended with a line end, or there was none yet.
  bool line_starts_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> Tokenize(absl::string_view source) {
  if (const size_t valid = ValidUtf8Prefix(source); valid != source.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("not UTF-8 at byte ", valid));
  }
  return Lexer(source).Run();
}

absl::Status ErrorAtLine(int line, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("line ", line, ": ", what));
}

}  // namespace ring::jinja
