#include "coordinator/cli/answer_printer.h"

#include <unistd.h>

#include <string>

namespace ring {
namespace {

constexpr char kDim[] = "\033[2m";
constexpr char kPlain[] = "\033[0m";

void Write(const std::string& text, FILE* stream) {
  std::fwrite(text.data(), 1, text.size(), stream);
  std::fflush(stream);
}

}  // namespace

AnswerPrinter::AnswerPrinter(FILE* reasoning, FILE* answer)
    : reasoning_(reasoning),
      answer_(answer),
      dims_(isatty(fileno(reasoning)) == 1) {}

void AnswerPrinter::Print(const v1::TokenDelta& delta) {
  if (!delta.reasoning().empty()) {
    Open(Part::kReasoning);
    Write(delta.reasoning(), reasoning_);
  }
  if (!delta.text().empty()) {
    Open(Part::kAnswer);
    Write(delta.text(), answer_);
  }
}

void AnswerPrinter::Finish() { Open(Part::kNone); }

void AnswerPrinter::Open(Part part) {
  if (part == part_) return;
  if (part_ == Part::kReasoning && dims_) std::fputs(kPlain, reasoning_);
  if (part_ != Part::kNone) Write("\n", Stream());
  part_ = part;
  if (part_ == Part::kReasoning && dims_) std::fputs(kDim, reasoning_);
}

FILE* AnswerPrinter::Stream() const {
  return part_ == Part::kReasoning ? reasoning_ : answer_;
}

}  // namespace ring
