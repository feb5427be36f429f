// The engine thread's loop: the leader plans, everybody executes.
#pragma once

#include "absl/status/status.h"
#include "parallel/control_channel.h"
#include "parallel/progress.h"

namespace ring {

class Engine;
class EventSink;
class Scheduler;
class SideLink;

// Lock step: one plan per step is broadcast, every rank runs exactly it, the
// results of other data-parallel groups come back to the leader, the scheduler
// commits. With nothing to run the leader sends a plan that parks the
// followers on the side link and waits without using CPU.
//
// On a device that works by itself a step is queued before the results of the
// one before are in (`overlap`): every order but PARK and SHUTDOWN then makes
// all ranks collect the step in flight after they queued the new one, if any.
//
// All members are borrowed and outlive the loop. Run* are called by the engine
// thread, one per process, and return when the group stops in good order. An
// error means that this rank must end at once, without another collective.
class StepLoop {
 public:
  struct Parts {
    ControlChannel* control = nullptr;
    SideLink* side_link = nullptr;  // null in a world without one (tests)
    Engine* engine = nullptr;
    Progress* progress = nullptr;
    int data_parallel = 1;
    int tensor_parallel = 1;
    bool overlap = false;  // the same on all ranks
  };

  explicit StepLoop(const Parts& parts) : parts_(parts) {}

  // Rank 0, until Scheduler::WaitForWork returns false. Events and load go to
  // `sink`.
  absl::Status RunLeader(Scheduler* scheduler, EventSink* sink);

  // The other ranks, until the leader says shutdown.
  absl::Status RunFollower();

 private:
  // Broadcasts a plan without rows.
  absl::Status SendOrder(int kind);
  // Plans, queues and commits; the leader's turn of the loop.
  absl::Status ExecuteStep(Scheduler* scheduler, EventSink* sink);
  // Whether a step is to be collected after `queued` new ones.
  bool MustCollect(bool queued) const;
  absl::Status CollectAndCommit(Scheduler* scheduler);  // leader
  absl::Status CollectAndSend();                        // followers

  const Parts parts_;
};

}  // namespace ring
