// The header of a checkpoint's file, whatever bytes it has.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "worker/model_files/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // A file of its own that never touches a disk.
  static const int file = memfd_create("safetensors", MFD_CLOEXEC);
  static const std::string path = absl::StrCat("/proc/self/fd/", file);
  RING_CHECK_EQ(ftruncate(file, static_cast<off_t>(size)), 0);
  RING_CHECK_EQ(pwrite(file, data, size, 0), static_cast<ssize_t>(size));
  const auto opened = ring::ReadOnlyFile::Open(path);
  RING_CHECK(opened.ok()) << opened.status().ToString();
  const auto tensors = ring::ReadSafetensorsHeader(*opened);
  if (!tensors.ok()) return 0;
  // What is accepted tiles the rest of the file.
  int64_t end = -1;
  for (const ring::TensorInfo& tensor : *tensors) {
    RING_CHECK(end < 0 || tensor.offset == end) << tensor.name;
    RING_CHECK_GE(tensor.bytes, 0) << tensor.name;
    end = tensor.offset + tensor.bytes;
  }
  if (end >= 0) RING_CHECK_EQ(end, static_cast<int64_t>(size));
  return 0;
}
