#include "worker/failure_judge.h"

#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace ring {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Kind = FailureNotice::Kind;
using Phase = Progress::Phase;

// A leader's view of two followers; every rank is a snapshot that the test
// changes, and time passes as it says.
class FailureJudgeTest : public testing::Test {
 protected:
  FailureJudgeTest() {
    for (ProgressSnapshot& rank : ranks_) rank.phase = Phase::kComputing;
  }

  static std::unique_ptr<FailureJudge> MakeJudge(int self) {
    return std::make_unique<FailureJudge>(self, FailureJudge::Options());
  }

  PeerState& peer(int rank) { return peers_[rank - 1]; }

  // Lets `time` pass in quarter seconds; ranks with moves_ tick, peers that are
  // not quiet_ are heard. Ends at the first notice.
  FailureNotice Pass(milliseconds time) {
    for (milliseconds t{0}; t < time; t += milliseconds(250)) {
      now_ += milliseconds(250);
      for (int r = 0; r < 3; ++r) {
        if (moves_[r]) ++ranks_[r].ticks;
      }
      for (int r = 1; r < 3; ++r) {
        peer(r).rank = r;
        peer(r).progress = ranks_[r];
        if (!quiet_[r]) peer(r).last_heard = now_;
      }
      const FailureNotice notice =
          judge_->Judge(now_, {own_failure_, told_, ranks_[self_], peers_});
      if (notice.kind != Kind::kNone) return notice;
    }
    return {};
  }

  int self_ = 0;
  std::unique_ptr<FailureJudge> judge_ = MakeJudge(0);
  FailureJudge::Clock::time_point now_{std::chrono::hours(1)};
  ProgressSnapshot ranks_[3];
  bool moves_[3] = {true, true, true};
  bool quiet_[3] = {false, false, false};
  std::vector<PeerState> peers_ = std::vector<PeerState>(2);
  FailureNotice told_;
  std::string own_failure_;
};

TEST_F(FailureJudgeTest, IsContentWhileRanksMove) {
  EXPECT_EQ(Pass(seconds(60)).kind, Kind::kNone);
}

TEST_F(FailureJudgeTest, LetsIdleRanksRest) {
  for (int r = 0; r < 3; ++r) {
    moves_[r] = false;
    ranks_[r].phase = Phase::kIdle;
  }
  EXPECT_EQ(Pass(seconds(60)).kind, Kind::kNone);
}

TEST_F(FailureJudgeTest, NamesTheRankWhoseLinkClosed) {
  EXPECT_EQ(Pass(seconds(1)).kind, Kind::kNone);
  peer(2).link = PeerState::Link::kClosed;
  const FailureNotice notice = Pass(seconds(1));
  EXPECT_EQ(notice.kind, Kind::kClosed);
  EXPECT_EQ(notice.rank, 2);
  EXPECT_EQ(notice.what, "connection closed");
}

TEST_F(FailureJudgeTest, NamesTheSilentRankAfterFiveSeconds) {
  EXPECT_EQ(Pass(seconds(1)).kind, Kind::kNone);
  quiet_[1] = true;
  EXPECT_EQ(Pass(seconds(5)).kind, Kind::kNone);
  const FailureNotice notice = Pass(milliseconds(250));
  EXPECT_EQ(notice.kind, Kind::kSilent);
  EXPECT_EQ(notice.rank, 1);
  EXPECT_EQ(notice.what, "silent for 5.2 s");
}

TEST_F(FailureJudgeTest, ForgivesRanksThatSaidGoodbye) {
  EXPECT_EQ(Pass(seconds(1)).kind, Kind::kNone);
  peer(1).link = PeerState::Link::kGoodbye;
  quiet_[1] = true;
  moves_[1] = false;
  EXPECT_EQ(Pass(seconds(60)).kind, Kind::kNone);
}

TEST_F(FailureJudgeTest, BlamesTheRankThatTheOthersWaitFor) {
  ranks_[0].phase = ranks_[2].phase = Phase::kWaiting;
  ranks_[0].collective = ranks_[2].collective = 7;
  ranks_[1].collective = 7;
  moves_[0] = moves_[1] = moves_[2] = false;
  EXPECT_EQ(Pass(seconds(10)).kind, Kind::kNone);
  const FailureNotice notice = Pass(seconds(1));
  EXPECT_EQ(notice.kind, Kind::kStalled);
  EXPECT_EQ(notice.rank, 1);
  EXPECT_EQ(notice.progress.collective, 7);
  EXPECT_EQ(notice.what.substr(0, 19), "no progress for 10.");
}

TEST_F(FailureJudgeTest, BlamesTheFewestCollectivesWhenAllWait) {
  for (int r = 0; r < 3; ++r) {
    ranks_[r].phase = Phase::kWaiting;
    ranks_[r].collective = r == 2 ? 41 : 42;
    moves_[r] = false;
  }
  EXPECT_EQ(Pass(seconds(11)).rank, 2);
}

TEST_F(FailureJudgeTest, LetsRanksWaitForOneThatWorks) {
  ranks_[0].phase = ranks_[1].phase = Phase::kWaiting;
  moves_[0] = moves_[1] = false;
  ranks_[2].phase = Phase::kLoading;
  EXPECT_EQ(Pass(seconds(60)).kind, Kind::kNone);
  moves_[2] = false;
  EXPECT_EQ(Pass(seconds(11)).rank, 2);
}

// As after loading, when one rank was slow: the leader parks the group, and
// hears half a second later that the others no longer wait.
TEST_F(FailureJudgeTest, GivesWaitingRanksTimeAfterTheLastHasBecomeIdle) {
  ranks_[1].phase = ranks_[2].phase = Phase::kWaiting;
  ranks_[1].collective = ranks_[2].collective = 1;
  moves_[1] = moves_[2] = false;
  EXPECT_EQ(Pass(seconds(20)).kind, Kind::kNone);
  moves_[0] = false;
  ranks_[0].phase = Phase::kIdle;
  EXPECT_EQ(Pass(seconds(10)).kind, Kind::kNone);
  const FailureNotice notice = Pass(seconds(1));
  EXPECT_EQ(notice.kind, Kind::kStalled);
  EXPECT_EQ(notice.rank, 0);
}

TEST_F(FailureJudgeTest, BlamesAStuckWorkerWhileOthersMove) {
  moves_[1] = false;
  const FailureNotice notice = Pass(seconds(11));
  EXPECT_EQ(notice.kind, Kind::kStalled);
  EXPECT_EQ(notice.rank, 1);
}

TEST_F(FailureJudgeTest, LeavesStallsToTheLeader) {
  self_ = 1;
  judge_ = MakeJudge(1);
  moves_[0] = moves_[1] = moves_[2] = false;
  EXPECT_EQ(Pass(seconds(60)).kind, Kind::kNone);
}

TEST_F(FailureJudgeTest, NamesItselfWhenItCannotGoOn) {
  quiet_[1] = true;
  EXPECT_EQ(Pass(seconds(5)).kind, Kind::kNone);
  own_failure_ = "the disk is gone";
  const FailureNotice notice = Pass(seconds(1));
  EXPECT_EQ(notice.kind, Kind::kReported);
  EXPECT_EQ(notice.rank, 0);
  EXPECT_EQ(notice.what, "the disk is gone");
}

// A parked follower's engine fails because the leader's link has ended.
TEST_F(FailureJudgeTest, BlamesAClosedLinkForItsOwnFailure) {
  own_failure_ = "the side link has ended";
  peer(2).link = PeerState::Link::kClosed;
  const FailureNotice notice = Pass(seconds(1));
  EXPECT_EQ(notice.kind, Kind::kClosed);
  EXPECT_EQ(notice.rank, 2);
}

// Who tells has judged, and ends: its link may have closed already.
TEST_F(FailureJudgeTest, BelievesAPeerThatHasJudged) {
  own_failure_ = "the side link has ended";
  peer(1).link = PeerState::Link::kClosed;
  told_ = {Kind::kSilent, 2, ranks_[2], "silent for 5.2 s"};
  const FailureNotice notice = Pass(seconds(1));
  EXPECT_EQ(notice.kind, Kind::kSilent);
  EXPECT_EQ(notice.rank, 2);
}

// All ranks of a suspended machine are silent when it wakes.
TEST_F(FailureJudgeTest, CountsOneSecondOfATimeInWhichItStoodStill) {
  EXPECT_EQ(Pass(seconds(1)).kind, Kind::kNone);
  quiet_[1] = quiet_[2] = true;
  moves_[0] = moves_[1] = moves_[2] = false;
  now_ += seconds(3600);
  EXPECT_EQ(Pass(seconds(4)).kind, Kind::kNone);
  EXPECT_EQ(Pass(milliseconds(500)).kind, Kind::kSilent);
}

// On a busy machine, where this process runs now and then.
TEST_F(FailureJudgeTest, NoticesSilenceInSpiteOfManyGaps) {
  EXPECT_EQ(Pass(seconds(1)).kind, Kind::kNone);
  quiet_[1] = true;
  Kind kind = Kind::kNone;
  for (int gap = 0; gap < 5; ++gap) {
    EXPECT_EQ(kind, Kind::kNone);
    now_ += seconds(2);
    kind = Pass(milliseconds(250)).kind;
  }
  EXPECT_EQ(Pass(milliseconds(250)).kind, Kind::kSilent);
}

}  // namespace
}  // namespace ring
