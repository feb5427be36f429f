// One line per event on stderr: time, level, who, event, key=value pairs.
//   LogInfo("model loaded", "bytes", n, "seconds", s);
// Thread-safe: a line is one write. Nothing per token at info level.
#pragma once

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace ring {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Who speaks: "coordinator", "rank 3". Set once at start, before threads.
void SetLogIdentity(absl::string_view identity);
// Lines below this level are dropped. Default kInfo. Set once at start.
void SetLogLevel(LogLevel level);
bool LogEnabled(LogLevel level);

namespace internal {
void WriteLogLine(LogLevel level, absl::string_view text);
// For RING_CHECK: always written, marked fatal.
void LogFatalLine(absl::string_view text);
// Appends " key=value"; a value with a space, quote or newline is quoted.
void AppendField(std::string* line, absl::string_view key,
                 absl::string_view value);

inline void AppendFields(std::string*) {}
template <typename Value, typename... Rest>
void AppendFields(std::string* line, absl::string_view key, const Value& value,
                  const Rest&... rest) {
  AppendField(line, key, absl::StrCat(value));
  AppendFields(line, rest...);
}
}  // namespace internal

template <typename... Fields>
void Log(LogLevel level, absl::string_view event, const Fields&... fields) {
  if (!LogEnabled(level)) return;
  std::string line(event);
  internal::AppendFields(&line, fields...);
  internal::WriteLogLine(level, line);
}
template <typename... Fields>
void LogDebug(absl::string_view event, const Fields&... fields) {
  Log(LogLevel::kDebug, event, fields...);
}
template <typename... Fields>
void LogInfo(absl::string_view event, const Fields&... fields) {
  Log(LogLevel::kInfo, event, fields...);
}
template <typename... Fields>
void LogWarning(absl::string_view event, const Fields&... fields) {
  Log(LogLevel::kWarning, event, fields...);
}
template <typename... Fields>
void LogError(absl::string_view event, const Fields&... fields) {
  Log(LogLevel::kError, event, fields...);
}

}  // namespace ring
