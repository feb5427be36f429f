#include "coordinator/cli/bench/load_plan.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "kernels/base/status_macros.h"
#include "worker/model_files/json.h"

namespace ring {
namespace {

// More than any context.
constexpr int64_t kMaxTokens = int64_t{1} << 30;

// Of the second generator, so that both never draw the same numbers.
constexpr uint64_t kOtherStream = 0x9E3779B97F4A7C15;

absl::StatusOr<int64_t> ParseTokens(absl::string_view text, int64_t least) {
  int64_t value = 0;
  if (absl::SimpleAtoi(text, &value) && value >= least && value <= kMaxTokens) {
    return value;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "\"", text, "\" is no number in [", least, ", ", kMaxTokens, "]"));
}

absl::StatusOr<int64_t> TokensOf(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number_integer() ||
      found->get<int64_t>() < 1 || found->get<int64_t>() > kMaxTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat(key, " has to be an integer in [1, ", kMaxTokens, "]"));
  }
  return found->get<int64_t>();
}

absl::StatusOr<PlannedRequest> ParseRequest(absl::string_view line,
                                            double earliest_s) {
  RING_ASSIGN_OR_RETURN(const Json object, ParseJson(line, "the object"));
  if (!object.is_object()) {
    return absl::InvalidArgumentError("there is no JSON object");
  }
  for (const auto& item : object.items()) {
    const std::string& key = item.key();
    if (key == "arrival_s" || key == "max_tokens" || key == "prompt_tokens" ||
        key == "text") {
      continue;
    }
    return absl::InvalidArgumentError(absl::StrCat(
        "unknown key ", key,
        ": use arrival_s, max_tokens and either prompt_tokens or text"));
  }
  PlannedRequest request;
  const auto arrival = object.find("arrival_s");
  if (arrival == object.end() || !arrival->is_number() ||
      !(arrival->get<double>() >= earliest_s)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "arrival_s has to be a number of seconds, at least ", earliest_s));
  }
  request.arrival_s = arrival->get<double>();
  RING_ASSIGN_OR_RETURN(request.max_tokens, TokensOf(object, "max_tokens"));
  const auto text = object.find("text");
  if ((text != object.end()) == object.contains("prompt_tokens")) {
    return absl::InvalidArgumentError("give either prompt_tokens or text");
  }
  if (text == object.end()) {
    RING_ASSIGN_OR_RETURN(request.prompt_tokens,
                          TokensOf(object, "prompt_tokens"));
    return request;
  }
  if (!text->is_string() || text->get<std::string>().empty()) {
    return absl::InvalidArgumentError("text has to be a string, not empty");
  }
  request.text = text->get<std::string>();
  return request;
}

}  // namespace

int64_t Lengths::Draw(std::mt19937_64* random) const {
  switch (kind) {
    case Kind::kFixed:
      break;
    case Kind::kUniform:
      return std::uniform_int_distribution<int64_t>(first, second)(*random);
    case Kind::kNormal: {
      std::normal_distribution<double> normal(static_cast<double>(first),
                                              static_cast<double>(second));
      return std::max<int64_t>(1, std::llround(normal(*random)));
    }
  }
  return first;
}

absl::StatusOr<Lengths> ParseLengths(absl::string_view text) {
  Lengths lengths;
  const size_t mark = text.find_first_of(":~");
  RING_ASSIGN_OR_RETURN(lengths.first, ParseTokens(text.substr(0, mark), 1));
  if (mark == absl::string_view::npos) return lengths;
  const absl::string_view rest = text.substr(mark + 1);
  const bool uniform = text[mark] == ':';
  lengths.kind = uniform ? Lengths::Kind::kUniform : Lengths::Kind::kNormal;
  RING_ASSIGN_OR_RETURN(lengths.second,
                        ParseTokens(rest, uniform ? lengths.first : 1));
  return lengths;
}

absl::StatusOr<std::vector<PlannedRequest>> ParseTrace(absl::string_view text) {
  std::vector<PlannedRequest> requests;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    auto request =
        ParseRequest(line, requests.empty() ? 0.0 : requests.back().arrival_s);
    if (!request.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, ": ", request.status().message()));
    }
    requests.push_back(*std::move(request));
  }
  if (requests.empty()) {
    return absl::InvalidArgumentError("there is no request in it");
  }
  return requests;
}

LoadPlan::LoadPlan(Args args)
    : args_(std::move(args)),
      arrivals_(args_.seed),
      lengths_(args_.seed ^ kOtherStream) {}

std::optional<PlannedRequest> LoadPlan::Next() {
  PlannedRequest request;
  if (args_.trace.empty()) {
    request.prompt_tokens = args_.prompt.Draw(&lengths_);
    request.max_tokens = args_.output.Draw(&lengths_);
  } else {
    if (next_ == args_.trace.size()) return std::nullopt;
    request = args_.trace[next_++];
  }
  if (args_.rate > 0) {
    clock_s_ += std::exponential_distribution<double>(args_.rate)(arrivals_);
    request.arrival_s = clock_s_;
  }
  return request;
}

}  // namespace ring
