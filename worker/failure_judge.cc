#include "worker/failure_judge.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_format.h"

namespace ring {
namespace {

using Kind = FailureNotice::Kind;
using Phase = Progress::Phase;

double Seconds(FailureJudge::Clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

FailureNotice JudgeLinks(const std::vector<PeerState>& peers) {
  for (const PeerState& peer : peers) {
    if (peer.link == PeerState::Link::kClosed) {
      return {Kind::kClosed, peer.rank, peer.progress, "connection closed"};
    }
  }
  return {};
}

}  // namespace

FailureNotice FailureJudge::Judge(Clock::time_point now,
                                  const Evidence& evidence) {
  ran_ += std::min<Clock::duration>(now - last_call_, options_.longest_gap);
  last_call_ = now;
  if (evidence.told.kind != Kind::kNone) return evidence.told;
  const FailureNotice closed = JudgeLinks(evidence.peers);
  if (closed.kind != Kind::kNone) return closed;
  if (!evidence.own_failure.empty()) {
    return {Kind::kReported, self_, evidence.own, evidence.own_failure};
  }
  std::vector<Track> ranks = {Follow(self_, evidence.own, now)};
  for (const PeerState& peer : evidence.peers) {
    if (peer.link != PeerState::Link::kOpen) continue;
    ranks.push_back(Follow(peer.rank, peer.progress, peer.last_heard));
  }
  const FailureNotice silent = JudgeSilence(ranks);
  if (silent.kind != Kind::kNone || self_ != 0) return silent;
  return JudgeStalls(ranks);
}

FailureJudge::Track FailureJudge::Follow(int rank,
                                         const ProgressSnapshot& progress,
                                         Clock::time_point heard) {
  const auto found =
      std::find_if(tracks_.begin(), tracks_.end(),
                   [&](const Track& track) { return track.rank == rank; });
  if (found == tracks_.end()) {
    return tracks_.emplace_back(Track{rank, progress, ran_, heard, ran_});
  }
  if (!(found->progress == progress)) {
    found->progress = progress;
    found->moved_at = ran_;
  }
  if (found->heard != heard) {
    found->heard = heard;
    found->heard_at = ran_;
  }
  return *found;
}

FailureNotice FailureJudge::JudgeSilence(
    const std::vector<Track>& ranks) const {
  for (const Track& track : ranks) {
    const Clock::duration quiet = ran_ - track.heard_at;
    if (quiet > options_.silence) {
      return {Kind::kSilent, track.rank, track.progress,
              absl::StrFormat("silent for %.1f s", Seconds(quiet))};
    }
  }
  return {};
}

FailureNotice FailureJudge::JudgeStalls(const std::vector<Track>& ranks) const {
  const auto still = [&](const Track& track) { return ran_ - track.moved_at; };
  // Who is to blame most comes first.
  const auto blame = [](const Track& a, const Track& b) {
    return std::tuple(a.progress.collective, a.rank) <
           std::tuple(b.progress.collective, b.rank);
  };
  std::vector<Track> working_stuck;
  bool waiting_stuck = false;
  bool somebody_moves = false;
  for (const Track& track : ranks) {
    if (still(track) <= options_.stall) {
      // Also who has just become idle: the news of those that it has released
      // comes later than its own.
      somebody_moves = true;
    } else if (track.progress.phase == Phase::kIdle) {
      continue;
    } else if (track.progress.phase == Phase::kWaiting) {
      waiting_stuck = true;
    } else {
      working_stuck.push_back(track);
    }
  }
  const std::vector<Track>* suspects = nullptr;
  if (!working_stuck.empty()) {
    suspects = &working_stuck;
  } else if (waiting_stuck && !somebody_moves) {
    // Idle ranks count: they have not joined what the others wait in.
    suspects = &ranks;
  } else {
    return {};
  }
  const Track& culprit =
      *std::min_element(suspects->begin(), suspects->end(), blame);
  return {Kind::kStalled, culprit.rank, culprit.progress,
          absl::StrFormat("no progress for %.1f s", Seconds(still(culprit)))};
}

}  // namespace ring
