// What a benchmark sends, and when: arrivals and lengths. Draws of its own
// seed; knows nothing of servers.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ring {

// How many tokens prompts or completions have.
struct Lengths {
  enum class Kind { kFixed, kUniform, kNormal };
  Kind kind = Kind::kFixed;
  int64_t first = 1;   // the length, the smallest, or the mean
  int64_t second = 0;  // unused, the largest, or the standard deviation

  // At least 1.
  int64_t Draw(std::mt19937_64* random) const;
};

// "128": always; "128:512": uniform, both included; "256~64": normal, mean and
// standard deviation. INVALID_ARGUMENT says what is wrong.
absl::StatusOr<Lengths> ParseLengths(absl::string_view text);

struct PlannedRequest {
  double arrival_s = 0;  // since the start of the load
  // The prompt: a text, or else so many random tokens.
  std::string text;
  int64_t prompt_tokens = 0;
  int64_t max_tokens = 1;
};

// A trace: one JSON object a line, in order of arrival, with `arrival_s`,
// `max_tokens` and either `prompt_tokens` or `text`. Empty lines are skipped.
// INVALID_ARGUMENT names the line.
absl::StatusOr<std::vector<PlannedRequest>> ParseTrace(absl::string_view text);

// The requests of one load, one after the other. Confined to one thread.
class LoadPlan {
 public:
  struct Args {
    Lengths prompt = {};
    Lengths output = {};
    // Not empty: its requests, instead of the lengths.
    std::vector<PlannedRequest> trace = {};
    // Poisson arrivals, requests per second; 0: those of the trace, or all at
    // the start.
    double rate = 0;
    uint64_t seed = 1;
  };

  explicit LoadPlan(Args args);

  // Nothing at the end of the trace; without one there is always a next.
  std::optional<PlannedRequest> Next();

 private:
  const Args args_;
  // Apart, so that arrivals do not depend on lengths.
  std::mt19937_64 arrivals_;
  std::mt19937_64 lengths_;
  size_t next_ = 0;
  double clock_s_ = 0;
};

}  // namespace ring
