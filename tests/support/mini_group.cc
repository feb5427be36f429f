#include "tests/support/mini_group.h"

#include <chrono>
#include <thread>

#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"
#include "parallel/thread_communicator.h"
#include "tests/support/event_log.h"
#include "tests/support/test_rank.h"
#include "worker/step_loop.h"

namespace ring {

struct MiniGroup::Ranks {
  Ranks(int tp, int dp) : world(tp, dp) {}

  ThreadWorld world;
  std::vector<std::thread> threads;
  Mutex mutex;
  CondVar changed;
  int ready GUARDED_BY(mutex) = 0;
  absl::Status failure GUARDED_BY(mutex);
};

MiniGroup::MiniGroup() = default;

absl::StatusOr<std::unique_ptr<MiniGroup>> MiniGroup::Start(
    const Options& options) {
  RING_ASSIGN_OR_RETURN(ModelConfigFile file,
                        ReadModelConfig(options.model_dir));
  const auto config = std::make_shared<const ModelConfig>(file.config);
  std::unique_ptr<MiniGroup> group(new MiniGroup);
  group->options_ = options;
  group->scheduler_ = std::make_unique<Scheduler>(SchedulingOf(options));
  group->events_ = std::make_unique<EventLog>();
  group->ranks_ = std::make_unique<Ranks>(options.tp, options.dp);

  MiniGroup* const self = group.get();
  const int world_size = options.tp * options.dp;
  for (int number = 0; number < world_size; ++number) {
    self->ranks_->threads.emplace_back([self, number, config] {
      Ranks& ranks = *self->ranks_;
      TestRank rank;
      const auto control =
          ranks.world.Control(number, &rank.progress, std::chrono::hours(1));
      const absl::Status built = BuildTestRank(
          self->options_, *config, number,
          [&](const Mesh& mesh, const BlockCommunicator::Options& blocks) {
            return ranks.world.Communicators(mesh, blocks);
          },
          &rank);
      {
        MutexLock lock(&ranks.mutex);
        ++ranks.ready;
        ranks.failure.Update(built);
        ranks.changed.NotifyAll();
        // A rank alone must not enter a collective.
        while (ranks.ready < self->options_.tp * self->options_.dp) {
          ranks.changed.Wait(&ranks.mutex);
        }
        if (!ranks.failure.ok()) return;
      }
      StepLoop::Parts parts;
      parts.control = control.get();
      parts.engine = rank.engine.get();
      parts.progress = &rank.progress;
      parts.data_parallel = self->options_.dp;
      parts.tensor_parallel = self->options_.tp;
      parts.overlap = self->options_.overlap;
      StepLoop loop(parts);
      const absl::Status status =
          number == 0
              ? loop.RunLeader(self->scheduler_.get(), self->events_.get())
              : loop.RunFollower();
      RING_CHECK(status.ok()) << status.ToString();
    });
  }
  MutexLock lock(&self->ranks_->mutex);
  while (self->ranks_->ready < world_size) {
    self->ranks_->changed.Wait(&self->ranks_->mutex);
  }
  RING_RETURN_IF_ERROR(self->ranks_->failure);
  return group;
}

MiniGroup::~MiniGroup() {
  scheduler_->CancelAll();
  scheduler_->Stop();
  for (std::thread& thread : ranks_->threads) thread.join();
}

uint64_t MiniGroup::Submit(GenerationRequest request) {
  const uint64_t id = next_id_++;
  request.id = id;
  if (request.num_token_ids == 0)
    request.num_token_ids = options_.num_token_ids;
  const absl::Status status = scheduler_->Submit(std::move(request));
  if (!status.ok()) events_->Fail(id, status);
  return id;
}

Completion MiniGroup::Wait(uint64_t id, int index) {
  return events_->Wait(id, index);
}

LoadReport MiniGroup::load() const { return events_->load(); }

std::string RingTinyDir() { return std::string(RING_TEST_DATA) + "/ring-tiny"; }

}  // namespace ring
