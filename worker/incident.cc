#include "worker/incident.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/base/log.h"

namespace ring {
namespace {

const char* Name(Progress::Phase phase) {
  switch (phase) {
    case Progress::Phase::kStarting:
      return "starting";
    case Progress::Phase::kLoading:
      return "loading";
    case Progress::Phase::kIdle:
      return "idle";
    case Progress::Phase::kComputing:
      return "computing";
    case Progress::Phase::kWaiting:
      return "waiting";
  }
  return "unknown";
}

// Fit for a quoted value on one line.
std::string Plain(std::string text) {
  std::replace_if(
      text.begin(), text.end(),
      [](unsigned char c) { return c < ' ' || c == '"'; }, '\'');
  return text;
}

}  // namespace

std::string IncidentLine(const FailureNotice& notice,
                         const std::string& culprit_host, int reporter) {
  const ProgressSnapshot& at = notice.progress;
  return absl::StrCat("incident rank=", notice.rank, " host=", culprit_host,
                      " step=", at.step, " rows=", at.rows, " layer=", at.layer,
                      " collective=", at.collective, " phase=", Name(at.phase),
                      " what=\"", Plain(notice.what), "\" reporter=", reporter);
}

void WriteIncident(const std::string& line, const std::string& file) {
  if (!file.empty()) {
    const int fd =
        open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd >= 0) {
      // One write, so that the lines of several ranks stay whole.
      const std::string text = line + "\n";
      [[maybe_unused]] const ssize_t n = write(fd, text.data(), text.size());
      close(fd);
    }
  }
  // Whoever reads the pipe may be what has failed.
  pollfd entry{STDERR_FILENO, POLLOUT, 0};
  if (poll(&entry, 1, 1000) > 0) LogError(line);
}

}  // namespace ring
