// Kills, stops and stalls ranks that are real processes, in every phase.
#include "worker/watchdog.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/process_group.h"
#include "worker/incident.h"

namespace ring {
namespace {

using std::chrono::milliseconds;
using Phase = Progress::Phase;
using testing::AllOf;
using testing::AnyOf;
using testing::Each;
using testing::HasSubstr;
using testing::SizeIs;
using testing::StartsWith;

constexpr int kRanks = 4;

enum class Fault { kKill, kStop, kStall, kReport };

struct Scenario {
  Fault fault;
  int culprit;
  Phase phase;  // of all ranks when the fault strikes
};

Watchdog::Options QuickOptions(const std::string& incident_file) {
  Watchdog::Options options;
  options.judge.silence = milliseconds(800);
  options.judge.stall = milliseconds(1500);
  options.judge.longest_gap = milliseconds(200);
  options.interval = milliseconds(50);
  options.incident_file = incident_file;
  return options;
}

// Lives in `phase` for ever: idle ranks park (the leader has no work and
// blocks), waiting ranks stand still, the others tick.
void Live(Phase phase, SideLink* link, Watchdog* watchdog, Progress* progress) {
  progress->phase = phase;
  if (phase == Phase::kIdle && link->rank() != 0) {
    watchdog->Fail(std::string(link->Park().message()));
  }
  while (true) {
    if (phase == Phase::kLoading || phase == Phase::kComputing) {
      progress->Tick();
    }
    poll(nullptr, 0, 20);
  }
}

void Suffer(const Scenario& scenario, Watchdog* watchdog, Progress* progress) {
  progress->EnterStep(5, 8);
  progress->EnterLayer(3);
  progress->phase = scenario.phase;
  switch (scenario.fault) {
    case Fault::kKill:
      raise(SIGKILL);
      break;
    case Fault::kStop:
      raise(SIGSTOP);
      break;
    case Fault::kStall:
      break;
    case Fault::kReport:
      watchdog->Fail("the disk is \"gone\"");
  }
  while (true) pause();
}

int RunRank(const Scenario& scenario, const std::string& incident_file,
            ControlChannel* control) {
  Progress progress;
  SideLink::Options link_options;
  link_options.heartbeat = milliseconds(100);
  auto link = SideLink::Create(control, &progress, link_options);
  if (!link.ok()) return 1;
  Watchdog watchdog(link->get(), &progress, QuickOptions(incident_file));
  std::vector<std::string> all;
  if (!control->AllGather("ready", &all).ok()) return 1;
  if (control->rank() == scenario.culprit) {
    Suffer(scenario, &watchdog, &progress);
  }
  // Others wait for a rank that stalls while it works.
  const bool wait = scenario.fault == Fault::kStall;
  Live(wait ? Phase::kWaiting : scenario.phase, link->get(), &watchdog,
       &progress);
  return 0;
}

std::string NewFile(const std::string& name) {
  const std::string path = testing::TempDir() + "ring_watchdog_" +
                           std::to_string(getpid()) + "_" + name;
  unlink(path.c_str());
  return path;
}

std::vector<std::string> LinesOf(const std::string& path) {
  std::vector<std::string> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

class WatchdogTest : public testing::TestWithParam<Scenario> {};

TEST_P(WatchdogTest, EndsTheGroupAndNamesTheCulprit) {
  const Scenario& scenario = GetParam();
  const std::string file = NewFile("incidents");
  const std::vector<RankEnd> ends = RunProcesses(
      kRanks,
      [&](ControlChannel* control) { return RunRank(scenario, file, control); },
      std::chrono::seconds(10));

  const bool speaks =
      scenario.fault == Fault::kStall || scenario.fault == Fault::kReport;
  for (int r = 0; r < kRanks; ++r) {
    EXPECT_TRUE(ends[r].ended) << "rank " << r << " outlived the group";
    if (r == scenario.culprit && !speaks) {
      EXPECT_EQ(ends[r].signal, SIGKILL) << "rank " << r;
    } else {
      EXPECT_EQ(ends[r].exit_code, kIncidentExitCode) << "rank " << r;
    }
  }
  const std::vector<std::string> lines = LinesOf(file);
  EXPECT_EQ(static_cast<int>(lines.size()), speaks ? kRanks : kRanks - 1);
  for (const std::string& line : lines) {
    EXPECT_THAT(line, StartsWith("incident rank=" +
                                 std::to_string(scenario.culprit) + " host="));
    switch (scenario.fault) {
      case Fault::kKill:
        EXPECT_THAT(line, HasSubstr("what=\"connection closed\""));
        break;
      case Fault::kStop:
        // The first follower to notice kills a leader, which ends the links
        // of the others.
        EXPECT_THAT(line, AnyOf(HasSubstr("what=\"silent for "),
                                HasSubstr("what=\"connection closed\"")));
        break;
      case Fault::kStall:
        EXPECT_THAT(line, HasSubstr("step=5 rows=8 layer=3 collective=0 "
                                    "phase=computing what=\"no progress for"));
        break;
      case Fault::kReport:
        EXPECT_THAT(line, HasSubstr("what=\"the disk is 'gone'\""));
    }
  }
  unlink(file.c_str());
}

std::string NameOf(const testing::TestParamInfo<Scenario>& info) {
  static const char* const kFaults[] = {"Kill", "Stop", "Stall", "Report"};
  static const char* const kPhases[] = {"Starting", "Loading", "Idle",
                                        "Computing", "Waiting"};
  return std::string(kFaults[static_cast<int>(info.param.fault)]) + "Rank" +
         std::to_string(info.param.culprit) + "While" +
         kPhases[static_cast<int>(info.param.phase)];
}

INSTANTIATE_TEST_SUITE_P(
    All, WatchdogTest,
    testing::Values(Scenario{Fault::kKill, 0, Phase::kLoading},
                    Scenario{Fault::kKill, 2, Phase::kLoading},
                    Scenario{Fault::kKill, 0, Phase::kIdle},
                    Scenario{Fault::kKill, 2, Phase::kIdle},
                    Scenario{Fault::kKill, 0, Phase::kComputing},
                    Scenario{Fault::kKill, 2, Phase::kComputing},
                    Scenario{Fault::kStop, 0, Phase::kIdle},
                    Scenario{Fault::kStop, 2, Phase::kComputing},
                    Scenario{Fault::kStall, 0, Phase::kComputing},
                    Scenario{Fault::kStall, 3, Phase::kComputing},
                    Scenario{Fault::kReport, 0, Phase::kComputing},
                    Scenario{Fault::kReport, 1, Phase::kLoading}),
    NameOf);

// A link between ranks that cannot signal each other.
class FarLink final : public SideLink {
 public:
  explicit FarLink(std::unique_ptr<SideLink> link)
      : link_(std::move(link)), hosts_(link_->hosts()) {
    for (HostIdentity& host : hosts_) host.boot = std::to_string(host.pid);
  }

  int rank() const override { return link_->rank(); }
  const std::vector<HostIdentity>& hosts() const override { return hosts_; }
  absl::Status Park() override { return link_->Park(); }
  void Wake() override { link_->Wake(); }
  void SayGoodbye() override { link_->SayGoodbye(); }
  void Poll(milliseconds timeout) override { link_->Poll(timeout); }
  std::vector<PeerState> Peers() const override { return link_->Peers(); }
  FailureNotice Notice() const override { return link_->Notice(); }
  void Announce(const FailureNotice& notice, milliseconds patience) override {
    link_->Announce(notice, patience);
  }
  void Interrupt() override { link_->Interrupt(); }

 private:
  const std::unique_ptr<SideLink> link_;
  std::vector<HostIdentity> hosts_;
};

// Continues this process, which will be stopped, when nobody has `lock` open
// and shares it any more. Forks, so call it while there is one thread.
void ContinueWhenAlone(const std::string& lock) {
  const pid_t self = getpid();
  if (fork() != 0) return;
  flock(open(lock.c_str(), O_RDWR | O_CREAT, 0600), LOCK_EX);
  kill(self, SIGCONT);
  _exit(0);
}

// Stops the leader until the followers have ended.
int RunFarRank(const std::string& incident_file, const std::string& lock,
               ControlChannel* control) {
  if (control->rank() != 0) {
    flock(open(lock.c_str(), O_RDWR | O_CREAT, 0600), LOCK_SH);
  }
  Progress progress;
  SideLink::Options options;
  options.heartbeat = milliseconds(100);
  auto near = SideLink::Create(control, &progress, options);
  if (!near.ok()) return 1;
  FarLink link(*std::move(near));
  if (control->rank() == 0) ContinueWhenAlone(lock);
  Watchdog watchdog(&link, &progress, QuickOptions(incident_file));
  if (control->rank() == 0) raise(SIGSTOP);
  Live(Phase::kComputing, &link, &watchdog, &progress);
  return 0;
}

TEST(WatchdogFarTest, NamesItselfWhenItRunsAgainAfterASilence) {
  const std::string file = NewFile("far");
  const std::string lock = NewFile("far_lock");
  const std::vector<RankEnd> ends = RunProcesses(
      kRanks,
      [&](ControlChannel* control) { return RunFarRank(file, lock, control); },
      std::chrono::seconds(10));
  for (const RankEnd& end : ends) EXPECT_EQ(end.exit_code, kIncidentExitCode);
  EXPECT_THAT(
      LinesOf(file),
      AllOf(SizeIs(kRanks), Each(AllOf(StartsWith("incident rank=0 "),
                                       HasSubstr("what=\"silent for ")))));
  unlink(file.c_str());
  unlink(lock.c_str());
}

TEST(WatchdogStopTest, LeavesInGoodOrder) {
  const std::string file = NewFile("clean");
  const auto run = [&](ControlChannel* control) {
    Progress progress;
    auto link = SideLink::Create(control, &progress, {});
    if (!link.ok()) return 1;
    Watchdog watchdog(link->get(), &progress, QuickOptions(file));
    // Ranks leave one after the other; nobody takes that for a failure.
    poll(nullptr, 0, 40 * control->rank());
    watchdog.Stop();
    return 0;
  };
  for (const RankEnd& end :
       RunProcesses(kRanks, run, std::chrono::seconds(10))) {
    EXPECT_EQ(end.exit_code, 0);
  }
  EXPECT_TRUE(LinesOf(file).empty());
}

TEST(WatchdogStopTest, NeedsNoPeers) {
  const auto run = [&](ControlChannel* control) {
    Progress progress;
    auto link = SideLink::Create(control, &progress, {});
    if (!link.ok()) return 1;
    Watchdog watchdog(link->get(), &progress, {});
    watchdog.Stop();
    return 0;
  };
  EXPECT_EQ(RunProcesses(1, run, std::chrono::seconds(5))[0].exit_code, 0);
}

}  // namespace
}  // namespace ring
