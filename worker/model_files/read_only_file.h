// A file that is read at positions, by several threads at once.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace ring {

// Owns a descriptor of a regular file, opened for reading only. Thread-safe:
// reads name their position and share no state.
class ReadOnlyFile {
 public:
  // NOT_FOUND when there is no such file; INVALID_ARGUMENT, with the path and
  // the system's reason, when it cannot be opened or is not a regular file.
  static absl::StatusOr<ReadOnlyFile> Open(const std::string& path);

  ReadOnlyFile(ReadOnlyFile&& other) noexcept;
  ReadOnlyFile& operator=(ReadOnlyFile&& other) noexcept;
  ~ReadOnlyFile();

  const std::string& path() const { return path_; }
  int64_t bytes() const { return bytes_; }  // when it was opened

  // Fills `out` from the bytes at `offset` on. DATA_LOSS when the file ends
  // before that or the device fails.
  absl::Status ReadAt(int64_t offset, absl::Span<std::byte> out) const;

  // Fills the parts one after the other from one run of bytes; same errors.
  // At most kMaxParts parts. Changes `parts`.
  static constexpr size_t kMaxParts = 512;
  absl::Status ReadAt(int64_t offset, absl::Span<iovec> parts) const;

  // Asks the system to fetch a range soon, in large device reads. A hint.
  void Prefetch(int64_t offset, int64_t bytes) const;

 private:
  ReadOnlyFile(std::string path, int descriptor, int64_t bytes);

  std::string path_;
  int descriptor_ = -1;
  int64_t bytes_ = 0;
};

}  // namespace ring
