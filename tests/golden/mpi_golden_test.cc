// Greedy completions of the bundled model by ranks that are processes: MPI
// between CPUs, NCCL between GPUs. Run under mpirun; RING_TEST_DEVICE says
// where the ranks run (cpu, or cuda with RING_TEST_GPUS of them).
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "parallel/communicator_factory.h"
#include "tests/parallel/mpi_world.h"
#include "tests/support/event_log.h"
#include "tests/support/golden_file.h"
#include "tests/support/shared_gpu.h"
#include "tests/support/test_rank.h"
#include "worker/step_loop.h"

namespace ring {
namespace {

// Collectives of ranks that share a GPU take milliseconds.
constexpr int kSharedPrompts = 10;
constexpr int kSharedTokens = 24;
constexpr int kTokens = 160;

bool OnGpus() {
  const char* const device = std::getenv("RING_TEST_DEVICE");
  return device != nullptr && std::strcmp(device, "cuda") == 0;
}

// How rows meet their experts.
enum class Experts {
  kReplicated,  // whole experts, rows on every rank
  kAllToAll,    // whole experts, rows travel
  // Sliced over a group of all ranks: decode rows on every rank, prompt rows
  // gathered.
  kSliced,
};

std::string Name(Experts experts) {
  if (experts == Experts::kSliced) return "sliced";
  return experts == Experts::kReplicated ? "replicated" : "alltoall";
}

using Parameters = std::tuple<Experts, DType>;

class MpiGoldenTest : public testing::TestWithParam<Parameters> {
 protected:
  MpiGoldenTest() : mpi_(*MpiWorld::Get().runtime) {
    shares_gpu_ = OnGpus() && RanksShareAGpu(mpi_.local_size());
    prompts_ = ReadGoldenPrompts();
    if (shares_gpu_) prompts_.resize(kSharedPrompts);
  }

  Experts experts() const { return std::get<0>(GetParam()); }

  MiniGroup::Options GroupOptions(int tp) const {
    MiniGroup::Options options;
    options.model_dir = RingTinyDir();
    options.tp = tp;
    options.dp = mpi_.size() / tp;
    options.max_sequences = 16;
    switch (experts()) {
      case Experts::kReplicated:
        options.exchange = Scheduler::ExchangePolicy::kReplicated;
        break;
      case Experts::kAllToAll:
        options.exchange = Scheduler::ExchangePolicy::kAllToAll;
        break;
      case Experts::kSliced:
        options.sliced_experts = true;
        options.replicated_rows = options.max_sequences;
        break;
    }
    options.activation_dtype = std::get<1>(GetParam());
    options.num_token_ids = 813;
    if (OnGpus()) options.device = GpuOfRank(mpi_.local_rank());
    options.pad_decode_rows = OnGpus();
    options.overlap = OnGpus();
    return options;
  }

  // What every rank does with its part of the group; the leader's scheduler
  // says when to stop.
  void RunRank(const MiniGroup::Options& options, Scheduler* scheduler,
               EventSink* sink) {
    auto file = ReadModelConfig(options.model_dir);
    ASSERT_TRUE(file.ok()) << file.status();
    TestRank rank;
    const absl::Status built = BuildTestRank(
        options, file->config, mpi_.rank(),
        [&](const Mesh& mesh, const BlockCommunicator::Options& collectives) {
          CommunicatorOptions communicators;
          communicators.collectives = collectives;
          communicators.share_gpu = shares_gpu_;
          return MakeCommunicators(&mpi_, mesh, communicators);
        },
        &rank);
    ASSERT_TRUE(built.ok()) << built;
    StepLoop::Parts parts;
    parts.control = mpi_.control();
    parts.engine = rank.engine.get();
    parts.progress = &rank.progress;
    parts.data_parallel = options.dp;
    parts.tensor_parallel = options.tp;
    parts.overlap = options.overlap;
    StepLoop loop(parts);
    const absl::Status ran =
        mpi_.rank() == 0 ? loop.RunLeader(scheduler, sink) : loop.RunFollower();
    ASSERT_TRUE(ran.ok()) << ran;
    const absl::Status closed = rank.communicators.Close();
    ASSERT_TRUE(closed.ok()) << closed;
  }

  // The leader submits all prompts at once, so that they share batches.
  void Lead(const MiniGroup::Options& options) {
    Scheduler scheduler(SchedulingOf(options));
    EventLog events;
    for (size_t i = 0; i < prompts_.size(); ++i) {
      GenerationRequest request;
      request.id = i + 1;
      request.prompt = prompts_[i].prompt_ids;
      request.max_new_tokens = shares_gpu_ ? kSharedTokens : kTokens;
      request.eos_token_ids = {807, 808};
      request.num_token_ids = options.num_token_ids;
      const absl::Status submitted = scheduler.Submit(std::move(request));
      ASSERT_TRUE(submitted.ok()) << submitted;
    }
    std::thread stop([&] {
      for (size_t i = 0; i < prompts_.size(); ++i) events.Wait(i + 1);
      scheduler.CancelAll();
      scheduler.Stop();
    });
    RunRank(options, &scheduler, &events);
    stop.join();
    for (size_t i = 0; i < prompts_.size(); ++i) {
      const Completion completion = events.Wait(i + 1);
      ASSERT_TRUE(completion.error.ok()) << completion.error;
      std::vector<int32_t> want = prompts_[i].completion_ids;
      if (shares_gpu_ && want.size() > kSharedTokens) {
        want.resize(kSharedTokens);
      }
      EXPECT_EQ(completion.tokens, want) << "prompt " << i;
    }
  }

  MpiRuntime& mpi_;
  bool shares_gpu_ = false;
  std::vector<GoldenPrompt> prompts_;
};

TEST_P(MpiGoldenTest, GreedyCompletionsAreExactOnEveryMesh) {
  for (int tp = 1; tp <= std::min(mpi_.size(), 4); tp *= 2) {
    if (mpi_.size() % tp != 0) continue;
    if (experts() == Experts::kSliced && tp != mpi_.size()) continue;
    SCOPED_TRACE("dp " + std::to_string(mpi_.size() / tp) + ", tp " +
                 std::to_string(tp));
    const MiniGroup::Options options = GroupOptions(tp);
    if (mpi_.rank() == 0) {
      Lead(options);
    } else {
      RunRank(options, nullptr, nullptr);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Exchanges, MpiGoldenTest,
    testing::Combine(testing::Values(Experts::kReplicated, Experts::kAllToAll,
                                     Experts::kSliced),
                     testing::Values(DType::kFloat32, DType::kBFloat16)),
    [](const auto& info) {
      return Name(std::get<0>(info.param)) + "_" +
             Name(std::get<1>(info.param));
    });

}  // namespace
}  // namespace ring
