#include "kernels/base/check.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "kernels/base/log.h"

namespace ring {
namespace {

thread_local std::function<void(const std::string&)> check_handler;

}  // namespace

void SetCheckHandler(std::function<void(const std::string&)> handler) {
  check_handler = std::move(handler);
}

}  // namespace ring

namespace ring::internal {

CheckFailure::CheckFailure(const char* file, int line, const char* condition) {
  stream_ << file << ":" << line << " check failed: " << condition << " ";
}

CheckFailure::~CheckFailure() {
  const std::string what = stream_.str();
  LogFatalLine(what);
  // A check that fails in the handler must not come back to it.
  const auto handler = std::exchange(check_handler, nullptr);
  if (handler) handler(what);
  std::abort();
}

}  // namespace ring::internal
