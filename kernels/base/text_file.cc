#include "kernels/base/text_file.h"

#include <cerrno>
#include <fstream>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace ring {

absl::StatusOr<std::string> ReadTextFile(const std::string& path,
                                         int64_t max_bytes) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    const int error = errno;
    const std::string message = absl::StrCat(
        "cannot open ", path, ": ", std::generic_category().message(error));
    return error == ENOENT ? absl::NotFoundError(message)
                           : absl::InvalidArgumentError(message);
  }
  // Read in pieces rather than by size: the size of a pipe is not known, and
  // a file may grow while it is read.
  std::string text;
  constexpr int64_t kPieceBytes = int64_t{1} << 20;
  while (file) {
    const size_t old_bytes = text.size();
    text.resize(old_bytes + kPieceBytes);
    file.read(text.data() + old_bytes, kPieceBytes);
    text.resize(old_bytes + static_cast<size_t>(file.gcount()));
    if (static_cast<int64_t>(text.size()) > max_bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " is larger than ", max_bytes, " bytes"));
    }
  }
  if (file.bad() || !file.eof()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "cannot read ", path, ": ", std::generic_category().message(errno)));
  }
  return text;
}

}  // namespace ring
