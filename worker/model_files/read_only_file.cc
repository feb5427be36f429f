#include "worker/model_files/read_only_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"

namespace ring {
namespace {

std::string Reason(int error) { return std::generic_category().message(error); }

}  // namespace

absl::StatusOr<ReadOnlyFile> ReadOnlyFile::Open(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    const int error = errno;
    const std::string message =
        absl::StrCat("cannot open ", path, ": ", Reason(error));
    return error == ENOENT ? absl::NotFoundError(message)
                           : absl::InvalidArgumentError(message);
  }
  ReadOnlyFile file(path, descriptor, 0);  // closes on every return below
  struct stat info;
  if (::fstat(descriptor, &info) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot stat ", path, ": ", Reason(errno)));
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is not a regular file"));
  }
  file.bytes_ = info.st_size;
  return file;
}

ReadOnlyFile::ReadOnlyFile(std::string path, int descriptor, int64_t bytes)
    : path_(std::move(path)), descriptor_(descriptor), bytes_(bytes) {}

ReadOnlyFile::ReadOnlyFile(ReadOnlyFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      bytes_(other.bytes_) {}

ReadOnlyFile& ReadOnlyFile::operator=(ReadOnlyFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

ReadOnlyFile::~ReadOnlyFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

absl::Status ReadOnlyFile::ReadAt(int64_t offset,
                                  absl::Span<std::byte> out) const {
  iovec part{out.data(), out.size()};
  return ReadAt(offset, absl::MakeSpan(&part, 1));
}

absl::Status ReadOnlyFile::ReadAt(int64_t offset,
                                  absl::Span<iovec> parts) const {
  RING_CHECK_LE(parts.size(), kMaxParts);
  while (!parts.empty()) {
    if (parts.front().iov_len == 0) {
      parts.remove_prefix(1);
      continue;
    }
    const ssize_t got = ::preadv(descriptor_, parts.data(),
                                 static_cast<int>(parts.size()), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      return absl::DataLossError(
          absl::StrCat("cannot read ", path_, " at byte ", offset, ": ",
                       got == 0 ? "the file ends there" : Reason(errno)));
    }
    offset += got;
    // A short read leaves a rest: drop what came and go on.
    size_t rest = static_cast<size_t>(got);
    while (rest > 0) {
      iovec& part = parts.front();
      const size_t taken = rest < part.iov_len ? rest : part.iov_len;
      part.iov_base = static_cast<std::byte*>(part.iov_base) + taken;
      part.iov_len -= taken;
      rest -= taken;
      if (part.iov_len == 0) parts.remove_prefix(1);
    }
  }
  return absl::OkStatus();
}

void ReadOnlyFile::Prefetch(int64_t offset, int64_t bytes) const {
  (void)::posix_fadvise(descriptor_, offset, bytes, POSIX_FADV_WILLNEED);
}

}  // namespace ring
