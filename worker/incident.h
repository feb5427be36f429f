// The one line that says why a worker group ended.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "parallel/side_link.h"

namespace ring {

// Exit status of every rank of a group that ends by a failure.
inline constexpr int kIncidentExitCode = 70;

// "incident rank=2 host=node7 step=1812 layer=3 collective=40211
//  phase=waiting what=\"connection closed\" reporter=0", on one line: names the
// culprit, where it was last seen and who says so.
std::string IncidentLine(const FailureNotice& notice,
                         absl::string_view culprit_host, int reporter);

// Writes the line to standard error as a log line, and appends it to `file`
// unless that is empty. Waits at most a second for a full pipe and ignores
// what cannot be written: the caller is about to end the process. Thread-safe.
void WriteIncident(absl::string_view line, const std::string& file);

}  // namespace ring
