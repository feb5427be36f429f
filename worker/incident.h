// The one line that says why a worker group ended.
#pragma once

#include <string>

#include "parallel/side_link.h"

namespace ring {

// Exit status of a rank whose group ends by a failure.
inline constexpr int kIncidentExitCode = 70;

// One line without its end: the culprit, where it was last seen, who says so.
//   incident rank=2 host=node7 step=1812 rows=8 layer=3 collective=40211
//   phase=waiting what="connection closed" reporter=0
std::string IncidentLine(const FailureNotice& notice,
                         const std::string& culprit_host, int reporter);

// Writes the line to standard error as a log line, and appends it to `file`
// unless that is empty. Gives up on a standard error that stays full for a
// second, and ignores a file that cannot be written: the caller is about to
// end the process. Thread-safe.
void WriteIncident(const std::string& line, const std::string& file);

}  // namespace ring
