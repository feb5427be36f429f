// Text of a terminal that is drawn over and over in the same place.
#pragma once

#include <cstdio>
#include <string>

namespace ring {

// Uses no more of a terminal than moving up and clearing, so there is nothing
// to put back in the end: what was shown last stays, and the cursor is below
// it. Confined to one thread.
class LiveText {
 public:
  // The stream stays the caller's.
  explicit LiveText(FILE* stream);

  // Whether the stream is a terminal. If it is not, Show does nothing.
  bool on_terminal() const { return on_terminal_; }

  // Replaces what was shown before by these lines, each with its newline, or by
  // nothing. What does not fit the terminal is cut off.
  void Show(const std::string& text);

 private:
  FILE* const stream_;
  const bool on_terminal_;
  int lines_ = 0;  // that are shown
};

}  // namespace ring
