#include "kernels/base/check.h"

#include <cstdio>
#include <cstdlib>

#include "kernels/base/log.h"

namespace ring::internal {

CheckFailure::CheckFailure(const char* file, int line, const char* condition) {
  stream_ << file << ":" << line << " check failed: " << condition << " ";
}

CheckFailure::~CheckFailure() {
  LogFatalLine(stream_.str());
  std::abort();
}

}  // namespace ring::internal
