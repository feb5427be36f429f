#define PCRE2_CODE_UNIT_WIDTH 8
#include "coordinator/text/pre_tokenizer.h"

#include <pcre2.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"

namespace ring {
namespace {

// A run of n spaces costs the usual patterns a few backtracks per byte; what
// goes beyond this is a pattern that explodes.
constexpr uint32_t kBaseMatchLimit = 10'000'000;
constexpr uint32_t kMatchLimitPerByte = 32;
// Enough for patterns with groups; the usual ones need next to nothing.
constexpr size_t kJitStackStartBytes = 32 << 10;
constexpr size_t kJitStackMaxBytes = 4 << 20;

struct PcreDeleter {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
  void operator()(pcre2_jit_stack* p) const { pcre2_jit_stack_free(p); }
};
template <typename T>
using PcrePtr = std::unique_ptr<T, PcreDeleter>;

std::string PcreMessage(int error) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(error, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

struct PreTokenizer::Scratch::State {
  PcrePtr<pcre2_match_data> data{pcre2_match_data_create(1, nullptr)};
  PcrePtr<pcre2_match_context> context{pcre2_match_context_create(nullptr)};
  // Null where nothing can be compiled to machine code.
  PcrePtr<pcre2_jit_stack> stack{
      pcre2_jit_stack_create(kJitStackStartBytes, kJitStackMaxBytes, nullptr)};
};

PreTokenizer::Scratch::Scratch() : state_(std::make_unique<State>()) {
  RING_CHECK(state_->data && state_->context) << "out of memory for a match";
  // Without a stack of its own the compiled code uses 32 KiB of ours.
  pcre2_jit_stack_assign(state_->context.get(), nullptr, state_->stack.get());
}

PreTokenizer::Scratch::~Scratch() = default;

struct PreTokenizer::Step {
  std::string pattern;  // as in the file
  PcrePtr<pcre2_code> code;

  // Finds the first match at or after `start`; false if there is none.
  absl::StatusOr<bool> Find(absl::string_view text, size_t start,
                            Scratch::State* state) const {
    const int result = pcre2_match(
        code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
        start, PCRE2_NO_UTF_CHECK, state->data.get(), state->context.get());
    if (result >= 0) return true;
    if (result == PCRE2_ERROR_NOMATCH) return false;
    return absl::ResourceExhaustedError(
        absl::StrCat("splitting ", text.size(), " bytes at byte ", start,
                     " with ", pattern, ": ", PcreMessage(result)));
  }
};

absl::StatusOr<std::unique_ptr<PreTokenizer>> PreTokenizer::Create(
    const std::vector<std::string>& patterns) {
  std::vector<Step> steps;
  for (const std::string& pattern : patterns) {
    RING_ASSIGN_OR_RETURN(const std::string translated,
                          internal::TranslatePattern(pattern));
    int error = 0;
    PCRE2_SIZE error_offset = 0;
    PcrePtr<pcre2_code> code(pcre2_compile(
        reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
        PCRE2_UTF | PCRE2_UCP, &error, &error_offset, nullptr));
    if (code == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("split pattern ", pattern, ": ", PcreMessage(error),
                       " at offset ", error_offset, " of ", translated));
    }
    uint32_t may_match_empty = 0;
    pcre2_pattern_info(code.get(), PCRE2_INFO_MATCHEMPTY, &may_match_empty);
    if (may_match_empty != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("split pattern ", pattern, ": can match nothing"));
    }
    // Fails where no memory may be executable; matching then interprets.
    pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
    steps.push_back({pattern, std::move(code)});
  }
  return std::unique_ptr<PreTokenizer>(new PreTokenizer(std::move(steps)));
}

PreTokenizer::PreTokenizer(std::vector<Step> steps)
    : steps_(std::move(steps)) {}

PreTokenizer::~PreTokenizer() = default;

absl::Status PreTokenizer::Split(
    absl::string_view text, Scratch* scratch,
    absl::FunctionRef<void(absl::string_view)> emit) const {
  const uint64_t limit =
      kBaseMatchLimit + uint64_t{kMatchLimitPerByte} * text.size();
  pcre2_set_match_limit(
      scratch->state_->context.get(),
      static_cast<uint32_t>(std::min<uint64_t>(limit, UINT32_MAX)));
  return SplitFrom(0, text, scratch->state_.get(), emit);
}

absl::Status PreTokenizer::SplitFrom(
    size_t step, absl::string_view text, Scratch::State* state,
    absl::FunctionRef<void(absl::string_view)> emit) const {
  if (text.empty()) return absl::OkStatus();
  if (step == steps_.size()) {
    emit(text);
    return absl::OkStatus();
  }
  size_t pos = 0;
  while (pos < text.size()) {
    RING_ASSIGN_OR_RETURN(const bool found,
                          steps_[step].Find(text, pos, state));
    if (!found) break;
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(state->data.get());
    const size_t begin = range[0];
    const size_t end = range[1];
    RING_CHECK_GT(end, pos) << "a match that does not advance";
    RING_RETURN_IF_ERROR(
        SplitFrom(step + 1, text.substr(pos, begin - pos), state, emit));
    RING_RETURN_IF_ERROR(
        SplitFrom(step + 1, text.substr(begin, end - begin), state, emit));
    pos = end;
  }
  return SplitFrom(step + 1, text.substr(pos), state, emit);
}

namespace internal {

absl::StatusOr<std::string> TranslatePattern(absl::string_view pattern) {
  constexpr absl::string_view kSpaces = "\\t-\\r\\x{85}\\p{Z}";
  const auto unsupported = [pattern](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(
        "split pattern ", pattern, ": ", what, " is not supported"));
  };
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char escaped = pattern[++i];
      if (escaped == 's') {
        absl::StrAppend(&out, in_class ? "" : "[", kSpaces,
                        in_class ? "" : "]");
      } else if (escaped == 'S') {
        if (in_class) return unsupported("\\S inside a class");
        absl::StrAppend(&out, "[^", kSpaces, "]");
      } else {
        out.push_back(c);
        out.push_back(escaped);
      }
      continue;
    }
    if (c == '[') {
      if (in_class) return unsupported("a class inside a class");
      in_class = true;
    } else if (c == ']') {
      in_class = false;
    } else if (in_class && c == '&' && pattern.substr(i, 2) == "&&") {
      return unsupported("an intersection of classes");
    }
    out.push_back(c);
  }
  return out;
}

}  // namespace internal
}  // namespace ring
