#include "coordinator/cli/live_text.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "coordinator/text/utf8.h"

namespace ring {
namespace {

// Of the terminal; of a usual one where it does not say.
struct Size {
  size_t rows = 24;
  size_t columns = 80;
};

Size SizeOf(FILE* stream) {
  winsize window{};
  if (ioctl(fileno(stream), TIOCGWINSZ, &window) != 0 || window.ws_row == 0 ||
      window.ws_col == 0) {
    return {};
  }
  return {window.ws_row, window.ws_col};
}

}  // namespace

LiveText::LiveText(FILE* stream)
    : stream_(stream), on_terminal_(isatty(fileno(stream)) == 1) {}

void LiveText::Show(const std::string& text) {
  if (!on_terminal_) return;
  const Size size = SizeOf(stream_);
  std::vector<absl::string_view> lines;
  if (!text.empty()) {
    lines = absl::StrSplit(absl::StripSuffix(text, "\n"), '\n');
  }
  // The cursor takes the last row.
  lines.resize(std::min(lines.size(), std::max<size_t>(size.rows, 2) - 1));
  std::string out = "\r";
  if (lines_ > 0) absl::StrAppend(&out, "\033[", lines_, "A");
  absl::StrAppend(&out, "\033[J");
  for (const absl::string_view line : lines) {
    // A line that wraps would take more rows than are counted. No character
    // takes more columns than bytes.
    const absl::string_view cut = line.substr(0, size.columns);
    absl::StrAppend(&out, cut.substr(0, ValidUtf8Prefix(cut)), "\n");
  }
  lines_ = static_cast<int>(lines.size());
  std::fputs(out.c_str(), stream_);
  std::fflush(stream_);
}

}  // namespace ring
