#include "kernels/base/available_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace ring {
namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

int64_t ReadMemAvailable() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  int64_t kib = 0;
  while (file >> key >> kib) {
    if (key == "MemAvailable:") return kib * 1024;
    std::getline(file, unit);
  }
  return kUnlimited;
}

// A file with one number, as those of control groups; "max" is no number.
int64_t ReadNumber(const char* path) {
  std::ifstream file(path);
  int64_t number = 0;
  return file >> number ? number : kUnlimited;
}

// The sum of the entries of a control group's memory.stat that count pages of
// files, which are given up when memory is short.
int64_t ReadFilePages(const char* path) {
  std::ifstream file(path);
  std::string key;
  int64_t bytes = 0;
  int64_t sum = 0;
  while (file >> key >> bytes) {
    if (key == "inactive_file" || key == "active_file") sum += bytes;
  }
  return sum;
}

int64_t ReadGroupAvailable(const char* limit_path, const char* usage_path,
                           const char* stat_path) {
  const int64_t limit = ReadNumber(limit_path);
  const int64_t usage = ReadNumber(usage_path);
  if (limit == kUnlimited || usage == kUnlimited) return kUnlimited;
  return std::clamp<int64_t>(limit - usage + ReadFilePages(stat_path), 0,
                             limit);
}

}  // namespace

int64_t AvailableMemoryBytes() {
  return std::min(
      {ReadMemAvailable(),
       ReadGroupAvailable("/sys/fs/cgroup/memory.max",
                          "/sys/fs/cgroup/memory.current",
                          "/sys/fs/cgroup/memory.stat"),
       ReadGroupAvailable("/sys/fs/cgroup/memory/memory.limit_in_bytes",
                          "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                          "/sys/fs/cgroup/memory/memory.stat")});
}

}  // namespace ring
