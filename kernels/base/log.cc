#include "kernels/base/log.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <ctime>

namespace ring {
namespace {

std::atomic<LogLevel> g_level{LogLevel::kInfo};

std::string& Identity() {
  static auto* identity = new std::string("-");
  return *identity;
}

// "2026-01-31T12:34:56.789Z"
std::string Timestamp() {
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  const auto millis = std::chrono::duration_cast<std::chrono::milliseconds>(
                          now.time_since_epoch())
                          .count() %
                      1000;
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  char text[40];
  const size_t n = std::strftime(text, sizeof(text), "%FT%T", &utc);
  std::snprintf(text + n, sizeof(text) - n, ".%03dZ", static_cast<int>(millis));
  return text;
}

void WriteLine(absl::string_view level, absl::string_view text) {
  const std::string line =
      absl::StrCat(Timestamp(), " ", level, " [", Identity(), "] ", text, "\n");
  // One write keeps lines of several threads and ranks whole. A log that
  // cannot be written has nowhere to be reported.
  [[maybe_unused]] const ssize_t written =
      ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace

void SetLogIdentity(absl::string_view identity) {
  Identity() = std::string(identity);
}
void SetLogLevel(LogLevel level) { g_level = level; }
bool LogEnabled(LogLevel level) { return level >= g_level; }

namespace internal {

void WriteLogLine(LogLevel level, absl::string_view text) {
  static constexpr const char* kNames[] = {"DEBUG", "INFO", "WARN", "ERROR"};
  WriteLine(kNames[static_cast<int>(level)], text);
}

void LogFatalLine(absl::string_view text) { WriteLine("FATAL", text); }

void AppendField(std::string* line, absl::string_view key,
                 absl::string_view value) {
  absl::StrAppend(line, " ", key, "=");
  const bool plain =
      !value.empty() && value.find_first_of(" \"\n\r\t=") == value.npos;
  if (plain) {
    absl::StrAppend(line, value);
    return;
  }
  line->push_back('"');
  for (const char c : value) {
    switch (c) {
      case '"':
        line->append("\\\"");
        break;
      case '\\':
        line->append("\\\\");
        break;
      case '\n':
        line->append("\\n");
        break;
      case '\r':
        line->append("\\r");
        break;
      default:
        line->push_back(c);
    }
  }
  line->push_back('"');
}

}  // namespace internal
}  // namespace ring
