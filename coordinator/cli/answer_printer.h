// A streamed answer on the terminal.
#pragma once

#include <cstdio>

#include "ring/v1/inference.pb.h"

namespace ring {

// Prints reasoning, dimmed where a terminal shows it, and then the answer, each
// part ending with a newline. The caller asks ferror(stream) whether all was
// written. Confined to one thread.
class AnswerPrinter {
 public:
  // The streams may be the same; they stay the caller's.
  AnswerPrinter(FILE* reasoning, FILE* answer);

  void Print(const v1::TokenDelta& delta);
  // Ends the part that is open, if one is. Call last.
  void Finish();

 private:
  enum class Part { kNone, kReasoning, kAnswer };
  void Open(Part part);
  FILE* Stream() const;

  FILE* const reasoning_;
  FILE* const answer_;
  const bool dims_;
  Part part_ = Part::kNone;
};

}  // namespace ring
