#include "parallel/side_link.h"

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "kernels/base/mutex.h"
#include "parallel/socket.h"
#include "parallel/thread_communicator.h"

namespace ring {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// One rank of a test: its link and the thread that polls it.
class Rank {
 public:
  Rank(ControlChannel* control, const SideLink::Options& options) {
    auto link = SideLink::Create(control, &progress, options);
    EXPECT_TRUE(link.ok()) << link.status();
    link_ = *std::move(link);
    poller_ = std::thread([this] {
      while (!ended_) {
        link_->Poll(milliseconds(500));
        MutexLock lock(&mutex_);
        polled_.NotifyAll();
      }
    });
  }
  ~Rank() {
    ended_ = true;
    link_->Interrupt();
    poller_.join();
  }

  SideLink* link() { return link_.get(); }

  // False if the condition has not come true in five seconds.
  bool Await(const std::function<bool(SideLink*)>& condition) {
    const auto deadline = Clock::now() + std::chrono::seconds(5);
    MutexLock lock(&mutex_);
    while (!condition(link_.get())) {
      if (!polled_.WaitUntil(&mutex_, deadline)) return false;
    }
    return true;
  }

  Progress progress;

 private:
  std::unique_ptr<SideLink> link_;
  std::atomic<bool> ended_{false};
  Mutex mutex_;
  CondVar polled_;
  std::thread poller_;
};

void RunRanks(int ranks,
              const std::function<void(ControlChannel* control)>& body) {
  ThreadWorld world(ranks, 1);
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back(
        [&world, &body, r] { body(world.Control(r, nullptr).get()); });
  }
  for (std::thread& thread : threads) thread.join();
}

void Meet(ControlChannel* control) {
  std::vector<std::string> all;
  ASSERT_TRUE(control->AllGather("", &all).ok());
}

TEST(SideLinkTest, NeedsNoPeers) {
  RunRanks(1, [](ControlChannel* control) {
    Rank rank(control, {});
    EXPECT_EQ(rank.link()->hosts().size(), 1u);
    EXPECT_TRUE(rank.link()->Peers().empty());
    EXPECT_TRUE(rank.link()->Park().ok());
    rank.link()->Wake();
  });
}

TEST(SideLinkTest, NoWakeIsLost) {
  constexpr int kRounds = 2000;
  RunRanks(4, [](ControlChannel* control) {
    Rank rank(control, {});
    for (int round = 0; round < kRounds; ++round) {
      // The leader does not wait for the followers to park.
      std::string plan = std::to_string(round);
      ASSERT_TRUE(control->Broadcast(&plan).ok());
      if (control->rank() == 0) {
        rank.link()->Wake();
      } else {
        ASSERT_TRUE(rank.link()->Park().ok());
      }
    }
    Meet(control);
  });
}

TEST(SideLinkTest, WakesInAnInstant) {
  constexpr int kRounds = 50;
  // The leader sees a follower's answer after at most this, in the middle; a
  // machine with more threads than cores spoils single rounds.
  RunRanks(2, [](ControlChannel* control) {
    Rank rank(control, {});
    std::vector<double> times;
    for (int round = 0; round < kRounds; ++round) {
      Meet(control);
      const auto start = Clock::now();
      if (control->rank() == 0) {
        rank.link()->Wake();
      } else {
        ASSERT_TRUE(rank.link()->Park().ok());
      }
      Meet(control);
      times.push_back(
          std::chrono::duration<double, std::micro>(Clock::now() - start)
              .count());
    }
    std::sort(times.begin(), times.end());
    if (control->rank() == 0) {
      RecordProperty("median_wake_us", static_cast<int>(times[kRounds / 2]));
      EXPECT_LT(times[kRounds / 2], 5000);
    }
  });
}

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return t.tv_sec + t.tv_usec / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

TEST(SideLinkTest, ParkedRanksUseNoCpu) {
  constexpr int kRanks = 4;
  RunRanks(kRanks, [](ControlChannel* control) {
    Rank rank(control, {});
    Meet(control);
    if (control->rank() != 0) {
      ASSERT_TRUE(rank.link()->Park().ok());
      return;
    }
    const double before = CpuSeconds();
    Mutex mutex;
    CondVar never;
    const auto end = Clock::now() + std::chrono::seconds(1);
    {
      MutexLock lock(&mutex);
      while (never.WaitUntil(&mutex, end)) {
      }
    }
    // All ranks are threads of this process: 5% of a core each at most.
    EXPECT_LT(CpuSeconds() - before, 0.05 * kRanks);
    rank.link()->Wake();
  });
}

TEST(SideLinkTest, HeartbeatsCarryProgressBothWays) {
  SideLink::Options options;
  options.heartbeat = milliseconds(10);
  RunRanks(3, [&](ControlChannel* control) {
    Rank rank(control, options);
    rank.progress.EnterStep(100 + control->rank(), 1);
    rank.progress.EnterLayer(control->rank());
    rank.progress.BeginCollective();
    EXPECT_TRUE(rank.Await([](SideLink* link) {
      for (const PeerState& peer : link->Peers()) {
        if (peer.progress.step != 100 + peer.rank ||
            peer.progress.layer != peer.rank || peer.progress.collective != 1 ||
            peer.progress.phase != Progress::Phase::kWaiting) {
          return false;
        }
      }
      return true;
    }));
    EXPECT_EQ(rank.link()->Peers().size(), control->rank() == 0 ? 2u : 1u);
    Meet(control);
  });
}

TEST(SideLinkTest, ToldNoticesReachEveryFollower) {
  RunRanks(4, [&](ControlChannel* control) {
    Rank rank(control, {});
    FailureNotice notice;
    notice.kind = FailureNotice::Kind::kStalled;
    notice.rank = 2;
    notice.progress.step = 77;
    notice.what = std::string(10000, 'x');  // too long: cut
    if (control->rank() == 0) {
      rank.link()->Announce(notice, milliseconds(0));
    } else {
      ASSERT_TRUE(rank.Await([](SideLink* link) {
        return link->Notice().kind != FailureNotice::Kind::kNone;
      }));
      const FailureNotice got = rank.link()->Notice();
      EXPECT_EQ(got.kind, notice.kind);
      EXPECT_EQ(got.rank, 2);
      EXPECT_EQ(got.progress, notice.progress);
      EXPECT_EQ(got.what, notice.what.substr(0, got.what.size()));
      EXPECT_GT(got.what.size(), 1000u);
    }
    Meet(control);
  });
}

TEST(SideLinkTest, TellsGoodbyeFromAnEnd) {
  RunRanks(3, [&](ControlChannel* control) {
    auto rank = std::make_unique<Rank>(control, SideLink::Options());
    Meet(control);
    if (control->rank() == 1) rank->link()->SayGoodbye();
    if (control->rank() != 0) {
      rank.reset();
      return;
    }
    EXPECT_TRUE(rank->Await([](SideLink* link) {
      const std::vector<PeerState> peers = link->Peers();
      return peers[0].link == PeerState::Link::kGoodbye &&
             peers[1].link == PeerState::Link::kClosed;
    }));
  });
}

TEST(SideLinkTest, ParkEndsWithTheLink) {
  RunRanks(2, [&](ControlChannel* control) {
    auto rank = std::make_unique<Rank>(control, SideLink::Options());
    Meet(control);
    if (control->rank() == 0) {
      rank.reset();
    } else {
      EXPECT_EQ(rank->link()->Park().code(), absl::StatusCode::kCancelled);
    }
  });
}

// Passes everything on; `on_broadcast` sees what the leader has sent.
class WatchedChannel final : public ControlChannel {
 public:
  WatchedChannel(ControlChannel* inner,
                 std::function<void(std::string*)> on_broadcast)
      : inner_(inner), on_broadcast_(std::move(on_broadcast)) {}
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  absl::Status Broadcast(std::string* message) override {
    const absl::Status status = inner_->Broadcast(message);
    on_broadcast_(message);
    return status;
  }
  absl::Status Gather(absl::string_view message,
                      std::vector<std::string>* all) override {
    return inner_->Gather(message, all);
  }
  absl::Status AllGather(absl::string_view message,
                         std::vector<std::string>* all) override {
    return inner_->AllGather(message, all);
  }

 private:
  ControlChannel* const inner_;
  const std::function<void(std::string*)> on_broadcast_;
};

TEST(SideLinkTest, DropsStrangers) {
  RunRanks(2, [&](ControlChannel* control) {
    std::vector<Fd> strangers;
    WatchedChannel channel(control, [&](std::string* invitation) {
      if (control->rank() == 0) return;
      // call token, answer token, host, port.
      const std::vector<std::string> fields = absl::StrSplit(*invitation, '\n');
      ASSERT_EQ(fields.size(), 4u);
      EXPECT_EQ(fields[2], "127.0.0.1");
      const SocketAddress leader{fields[2], std::atoi(fields[3].c_str())};
      const auto deadline = Clock::now() + std::chrono::seconds(5);
      for (const std::string& call :
           {std::string(40, '0'), fields[0] + "00000007",
            std::string("GET /")}) {
        auto fd = Connect(leader, deadline);
        ASSERT_TRUE(fd.ok()) << fd.status();
        ASSERT_TRUE(SendAll(*fd, call, deadline).ok());
        strangers.push_back(*std::move(fd));
      }
    });
    Rank rank(&channel, {});
    ASSERT_EQ(rank.link()->Peers().size(), 1u);
    Meet(control);
    // Neither a wrong token nor a rank that does not exist gets an answer.
    for (const Fd& stranger : strangers) {
      const auto answer =
          ReceiveExactly(stranger, 1, Clock::now() + std::chrono::seconds(5));
      EXPECT_FALSE(answer.ok());
    }
    Meet(control);
  });
}

TEST(SideLinkTest, NamesTheRanksThatDoNotCall) {
  RunRanks(2, [&](ControlChannel* control) {
    SideLink::Options options;
    options.connect_deadline = milliseconds(100);
    options.host_name = "node" + std::to_string(control->rank());
    Progress progress;
    WatchedChannel channel(control, [&](std::string* invitation) {
      // The follower is sent to a port where nobody listens.
      if (control->rank() == 1) *invitation = "a\nb\n127.0.0.1\n1";
    });
    const absl::Status status =
        SideLink::Create(&channel, &progress, options).status();
    if (control->rank() == 0) {
      EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
      EXPECT_NE(status.message().find("rank 1 on node1"), status.message().npos)
          << status;
    } else {
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
      EXPECT_NE(status.message().find("127.0.0.1:1"), status.message().npos)
          << status;
    }
  });
}

TEST(SideLinkTest, AllRanksLearnThatTheLeaderCannotListen) {
  RunRanks(3, [&](ControlChannel* control) {
    SideLink::Options options;
    options.listen_address = "203.0.113.7";  // not of this host
    Progress progress;
    const absl::Status status =
        SideLink::Create(control, &progress, options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_NE(status.message().find("cannot listen on 203.0.113.7"),
              status.message().npos)
        << status;
  });
}

}  // namespace
}  // namespace ring
