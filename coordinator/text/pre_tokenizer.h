// Cuts text into the pieces ("words") that byte-pair merges never cross, with
// the regular expressions of tokenizer.json.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ring {

// A chain of Split steps with behavior "Isolated": each match is a piece, and
// so is the text between matches; the next step cuts the pieces of the one
// before. Runs PCRE2 with Unicode properties, compiled to machine code where
// the machine allows it. Immutable, so usable from any thread.
class PreTokenizer {
 public:
  // One pattern per step, in Oniguruma's syntax as in tokenizer.json.
  // INVALID_ARGUMENT: a pattern that does not compile, that can match nothing,
  // or that uses syntax which means something else in PCRE2.
  static absl::StatusOr<std::unique_ptr<PreTokenizer>> Create(
      const std::vector<std::string>& patterns);

  ~PreTokenizer();
  PreTokenizer(const PreTokenizer&) = delete;
  PreTokenizer& operator=(const PreTokenizer&) = delete;

  // Working memory of Split. Costs a few system calls to make, so callers keep
  // one between texts. One thread at a time.
  class Scratch {
   public:
    Scratch();
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

   private:
    friend class PreTokenizer;
    struct State;
    const std::unique_ptr<State> state_;
  };

  // Calls `emit` with the pieces of `text` in order; they are never empty and
  // joined they are `text`. REQUIRES: `text` is valid UTF-8.
  // RESOURCE_EXHAUSTED if a pattern backtracks beyond all measure.
  absl::Status Split(absl::string_view text, Scratch* scratch,
                     absl::FunctionRef<void(absl::string_view)> emit) const;

 private:
  struct Step;
  explicit PreTokenizer(std::vector<Step> steps);

  // Applies the steps from `step` on to `text`.
  absl::Status SplitFrom(size_t step, absl::string_view text,
                         Scratch::State* state,
                         absl::FunctionRef<void(absl::string_view)> emit) const;

  const std::vector<Step> steps_;
};

namespace internal {

// Oniguruma's \s is the White_Space property, PCRE2's has U+180E besides:
// spells \s and \S out. INVALID_ARGUMENT for \S in a class and nested classes.
absl::StatusOr<std::string> TranslatePattern(absl::string_view pattern);

}  // namespace internal
}  // namespace ring
