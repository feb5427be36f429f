#include "tests/support/mini_group.h"

#include <chrono>
#include <thread>

#include "kernels/backend_factory.h"
#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"
#include "kernels/paged_attention/paged_attention.h"
#include "parallel/expert_placement.h"
#include "parallel/thread_communicator.h"
#include "worker/model/weight_shard.h"
#include "worker/model_files/checkpoint.h"
#include "worker/shard_of_mesh.h"
#include "worker/step_loop.h"

namespace ring {

// Collects events by request.
class MiniGroup::Events final : public EventSink {
 public:
  void Publish(std::vector<TokenEvent> events) override {
    MutexLock lock(&mutex_);
    for (TokenEvent& event : events) {
      Completion& completion = completions_[event.id];
      RING_CHECK(!completion.done()) << "an event after the last";
      // A continuation starts after the tokens that came with it.
      if (completion.next_index < 0) completion.next_index = event.start_index;
      RING_CHECK_EQ(event.start_index, completion.next_index);
      completion.next_index += static_cast<int64_t>(event.tokens.size());
      completion.tokens.insert(completion.tokens.end(), event.tokens.begin(),
                               event.tokens.end());
      completion.logprobs.insert(completion.logprobs.end(),
                                 event.logprobs.begin(), event.logprobs.end());
      completion.finish = event.finish;
      completion.error = event.error;
    }
    changed_.NotifyAll();
  }
  void PublishLoad(const LoadReport& load) override {
    MutexLock lock(&mutex_);
    load_ = load;
  }
  LoadReport load() {
    MutexLock lock(&mutex_);
    return load_;
  }

  void Fail(uint64_t id, absl::Status error) {
    MutexLock lock(&mutex_);
    completions_[id].error = std::move(error);
  }

  Completion Wait(uint64_t id) {
    const auto deadline =
        std::chrono::steady_clock::now() + std::chrono::minutes(2);
    MutexLock lock(&mutex_);
    while (!completions_[id].done()) {
      if (!changed_.WaitUntil(&mutex_, deadline)) {
        Completion late = completions_[id];
        late.error = absl::DeadlineExceededError("no end within two minutes");
        return late;
      }
    }
    return completions_[id];
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::map<uint64_t, Completion> completions_ GUARDED_BY(mutex_);
  LoadReport load_ GUARDED_BY(mutex_);
};

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

namespace {

// Everything of one rank, in the order it is made.
struct Rank {
  std::unique_ptr<Backend> backend;
  Progress progress;
  std::unique_ptr<Mesh> mesh;
  std::unique_ptr<ExpertPlacement> placement;
  std::unique_ptr<WeightShard> weights;
  MeshCommunicators communicators;
  std::unique_ptr<ControlChannel> control;
  std::unique_ptr<Engine> engine;
};

absl::StatusOr<WeightShard> MakeShard(const MiniGroup::Options& options,
                                      const ModelConfig& config,
                                      const ShardSpec& spec) {
  if (options.dummy_weights) {
    return WeightShard::MakeUp(config, spec, /*seed=*/1, options.threads);
  }
  RING_ASSIGN_OR_RETURN(const Checkpoint checkpoint,
                        Checkpoint::Open(options.model_dir));
  return WeightShard::Load(config, checkpoint, spec, 1);
}

absl::Status Build(const MiniGroup::Options& options, const ModelConfig& config,
                   int number, ThreadWorld* world, Rank* rank) {
  RING_ASSIGN_OR_RETURN(Mesh mesh, MakeMesh(config, options.tp * options.dp,
                                            number, options.tp, options.dp));
  rank->mesh = std::make_unique<Mesh>(mesh);
  RING_ASSIGN_OR_RETURN(
      ExpertPlacement placement,
      ExpertPlacement::Contiguous(config.num_hidden_layers, config.num_experts,
                                  mesh.world_size()));
  rank->placement = std::make_unique<ExpertPlacement>(std::move(placement));
  RING_ASSIGN_OR_RETURN(rank->backend,
                        MakeBackend(options.device, options.threads));
  ShardSpec spec = MakeShardSpec(config, *rank->mesh, *rank->placement);
  spec.decay_mode = options.decay_mode;
  spec.format = options.format;
  RING_ASSIGN_OR_RETURN(WeightShard shard, MakeShard(options, config, spec));
  rank->weights = std::make_unique<WeightShard>(std::move(shard));
  if (options.device != "cpu") {
    RING_RETURN_IF_ERROR(rank->weights->MoveTo(rank->backend.get()));
  }

  HostCommunicator::Options communicator;
  communicator.backend = rank->backend.get();
  communicator.progress = &rank->progress;
  communicator.max_reduce_rows = options.max_batch_tokens;
  communicator.max_reduce_cols = config.hidden_size;
  RING_ASSIGN_OR_RETURN(rank->communicators,
                        world->Communicators(*rank->mesh, communicator));
  rank->control =
      world->Control(number, &rank->progress, std::chrono::hours(1));

  Engine::Parts parts;
  parts.config = &config;
  parts.weights = &rank->weights->weights();
  parts.mesh = rank->mesh.get();
  parts.placement = rank->placement.get();
  parts.tp = rank->communicators.tp.get();
  parts.dp = rank->communicators.dp.get();
  parts.world = rank->communicators.world.get();
  parts.backend = rank->backend.get();
  parts.progress = &rank->progress;
  Engine::Options engine;
  engine.max_sequences = options.max_sequences;
  engine.num_pages = static_cast<int>(options.kv_tokens / kPageTokens);
  engine.max_batch_tokens = options.max_batch_tokens;
  engine.max_context = options.max_context;
  engine.activation_dtype = options.activation_dtype;
  engine.kv_dtype = options.activation_dtype;
  RING_ASSIGN_OR_RETURN(rank->engine, Engine::Create(parts, engine));
  if (options.on_ready) {
    options.on_ready(number, *rank->mesh, rank->engine.get());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<MiniGroup>> MiniGroup::Start(
    const Options& options) {
  RING_ASSIGN_OR_RETURN(ModelConfigFile file,
                        ReadModelConfig(options.model_dir));
  const auto config = std::make_shared<const ModelConfig>(file.config);
  std::unique_ptr<MiniGroup> group(new MiniGroup);
  group->options_ = options;
  Scheduler::Options scheduling;
  scheduling.data_parallel = options.dp;
  scheduling.tensor_parallel = options.tp;
  scheduling.cache = {options.max_sequences,
                      static_cast<int>(options.kv_tokens / kPageTokens)};
  scheduling.max_batch_tokens = options.max_batch_tokens;
  scheduling.max_context = options.max_context;
  scheduling.max_queued = options.max_queued;
  scheduling.exchange = options.exchange;
  scheduling.replicated_rows = options.replicated_rows;
  group->scheduler_ = std::make_unique<Scheduler>(scheduling);
  group->events_ = std::make_unique<Events>();
  group->ranks_ = std::make_unique<Ranks>(options.tp, options.dp);

  MiniGroup* const self = group.get();
  const int world_size = options.tp * options.dp;
  for (int number = 0; number < world_size; ++number) {
    self->ranks_->threads.emplace_back([self, number, config] {
      Ranks& ranks = *self->ranks_;
      Rank rank;
      const absl::Status built =
          Build(self->options_, *config, number, &ranks.world, &rank);
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
      parts.control = rank.control.get();
      parts.engine = rank.engine.get();
      parts.progress = &rank.progress;
      parts.data_parallel = self->options_.dp;
      parts.tensor_parallel = self->options_.tp;
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

Completion MiniGroup::Wait(uint64_t id) { return events_->Wait(id); }

LoadReport MiniGroup::load() const { return events_->load(); }

std::string RingTinyDir() { return std::string(RING_TEST_DATA) + "/ring-tiny"; }

}  // namespace ring
