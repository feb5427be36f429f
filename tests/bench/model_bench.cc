// A whole model of random weights on one CPU rank against what the machine can
// do at best in the same run: decode against reading memory, a prompt against
// the packaged matrix product.
//
//   model_bench CONFIG.json THREADS
//
// Prints the fastest and the middle one of many steps: on a shared machine the
// first is the least disturbed one.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <string>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/log.h"
#include "kernels/base/mutex.h"
#include "kernels/base/thread_pool.h"
#include "kernels/linear/dnnl_gemm.h"
#include "ring/v1/plan.pb.h"
#include "tests/bench/machine.h"
#include "tests/support/mini_group.h"
#include "worker/model_files/model_config.h"

namespace ring {
namespace {

constexpr int64_t kPromptTokens = 2048;
constexpr int kPrompts = 5;
constexpr int kDecodeSteps = 60;

// Parameters that a token multiplies with, other than the head's, and the
// head's.
struct ActiveParameters {
  int64_t body = 0;
  int64_t head = 0;
};

ActiveParameters CountActive(const ModelConfig& c) {
  const int64_t hidden = c.hidden_size;
  const int64_t query = c.query_size();
  const int64_t kv = int64_t{c.num_key_value_heads} * c.head_dim;
  ActiveParameters active;
  for (int layer = 0; layer < c.num_hidden_layers; ++layer) {
    // query_key_value, g_proj and dense.
    active.body += c.IsSoftmaxLayer(layer) ? hidden * (2 * query + 2 * kv)
                                           : hidden * (5 * query);
    if (c.IsDenseLayer(layer)) {
      active.body += 3 * hidden * c.intermediate_size;
      continue;
    }
    active.body += hidden * c.num_experts +
                   3 * hidden * c.moe_intermediate_size *
                       (c.num_experts_per_tok + c.num_shared_experts);
  }
  active.head = hidden * c.vocab_size;
  return active;
}

double CpuSeconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * now.tv_nsec;
}

struct Moment {
  std::chrono::steady_clock::time_point wall;
  double cpu_s = 0;
  static Moment Now() {
    return {std::chrono::steady_clock::now(), CpuSeconds()};
  }
};

// Times between two moments, sorted on its own each.
struct Times {
  std::vector<double> wall_s;
  std::vector<double> cpu_s;

  void Add(const Moment& from, const Moment& to) {
    wall_s.push_back(
        std::chrono::duration<double>(to.wall - from.wall).count());
    cpu_s.push_back(to.cpu_s - from.cpu_s);
  }
  void Sort() {
    std::sort(wall_s.begin(), wall_s.end());
    std::sort(cpu_s.begin(), cpu_s.end());
  }
};

// The moments when the model was through with a step.
class StepClock {
 public:
  void Watch(Engine* engine) {
    engine->set_step_observer([this](const v1::BatchPlan&, const float*) {
      MutexLock lock(&mutex_);
      moments_.push_back(Moment::Now());
    });
  }
  std::vector<Moment> Take() {
    MutexLock lock(&mutex_);
    return std::move(moments_);
  }

 private:
  Mutex mutex_;
  std::vector<Moment> moments_ GUARDED_BY(mutex_);
};

GenerationRequest Request(int64_t prompt_tokens, int new_tokens, int seed) {
  GenerationRequest request;
  for (int64_t i = 0; i < prompt_tokens; ++i) {
    request.prompt.push_back(static_cast<int32_t>((i * 7919 + seed) % 50000));
  }
  request.max_new_tokens = new_tokens;
  return request;
}

Times MeasurePrompts(MiniGroup* group, StepClock* clock) {
  Times times;
  for (int i = 0; i < kPrompts; ++i) {
    const Moment start = Moment::Now();
    const Completion done = group->Run(Request(kPromptTokens, 1, i));
    RING_CHECK(done.error.ok()) << done.error.ToString();
    const std::vector<Moment> steps = clock->Take();
    RING_CHECK_EQ(steps.size(), 1u);
    times.Add(start, steps[0]);
  }
  times.Sort();
  return times;
}

Times MeasureDecode(MiniGroup* group, StepClock* clock) {
  const Completion done = group->Run(Request(64, kDecodeSteps + 1, 0));
  RING_CHECK(done.error.ok()) << done.error.ToString();
  const std::vector<Moment> steps = clock->Take();
  Times times;
  for (size_t i = 2; i < steps.size(); ++i) times.Add(steps[i - 1], steps[i]);
  times.Sort();
  return times;
}

// FLOP per second of processor time of the packaged product, best of several.
double LibraryRate(int64_t hidden, int threads) {
  if (!DnnlGemmSupports(DType::kBFloat16)) return 0;
  ThreadPool pool(threads);
  const std::vector<BFloat16> x(kPromptTokens * hidden, BFloat16{0x3c3c});
  const std::vector<BFloat16> w(hidden * hidden, BFloat16{0x3c3c});
  std::vector<float> y(kPromptTokens * hidden);
  DnnlGemmArgs args;
  args.x = x.data();
  args.rows = kPromptTokens;
  args.weight.data = w.data();
  args.weight.dtype = DType::kBFloat16;
  args.weight.rows = args.weight.cols = args.weight.row_stride = hidden;
  args.y = y.data();
  double best_s = 1e30;
  for (int i = 0; i < 20; ++i) {
    const double start = CpuSeconds();
    RING_CHECK(DnnlGemm(args, &pool));
    best_s = std::min(best_s, CpuSeconds() - start);
  }
  return 2.0 * kPromptTokens * hidden * hidden / best_s;
}

double Middle(const std::vector<double>& sorted) {
  return sorted[sorted.size() / 2];
}

void Report(const ModelConfig& config, int threads, const Times& prompts,
            const Times& decode) {
  const ActiveParameters active = CountActive(config);
  const double flops = 2.0 * active.body * kPromptTokens;
  const double library = LibraryRate(config.hidden_size, threads);
  std::printf(
      "prompt of %d tokens: %.2f s, %.0f tokens/s; products alone are "
      "%.0f GFLOP per processor second (middle %.0f), the library makes %.0f: "
      "%.0f%% (middle %.0f%%)\n",
      static_cast<int>(kPromptTokens), prompts.wall_s[0],
      kPromptTokens / prompts.wall_s[0], flops / prompts.cpu_s[0] / 1e9,
      flops / Middle(prompts.cpu_s) / 1e9, library / 1e9,
      100 * flops / prompts.cpu_s[0] / library,
      100 * flops / Middle(prompts.cpu_s) / library);
  ThreadPool pool(threads);
  const double read = ReadBandwidth(&pool);
  const double bytes = 2.0 * (active.body + active.head);
  std::printf(
      "decode, batch 1: %.2f ms, %.1f tokens/s; %.0f MB of weights at "
      "%.1f GB/s (middle %.1f), reading makes %.1f: %.0f%% (middle %.0f%%)\n",
      1e3 * decode.wall_s[0], 1 / decode.wall_s[0], bytes / 1e6,
      bytes / decode.wall_s[0] / 1e9, bytes / Middle(decode.wall_s) / 1e9,
      read / 1e9, 100 * bytes / decode.wall_s[0] / read,
      100 * bytes / Middle(decode.wall_s) / read);
}

int Main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: model_bench CONFIG.json THREADS\n");
    return 2;
  }
  SetLogLevel(LogLevel::kWarning);
  const std::string folder =
      std::filesystem::temp_directory_path() / "ring_model_bench";
  std::filesystem::create_directories(folder);
  std::filesystem::copy_file(argv[1], folder + "/config.json",
                             std::filesystem::copy_options::overwrite_existing);
  const absl::StatusOr<ModelConfigFile> file = ReadModelConfig(folder);
  RING_CHECK(file.ok()) << file.status().ToString();

  StepClock clock;
  MiniGroup::Options options;
  options.model_dir = folder;
  options.dummy_weights = true;
  options.activation_dtype = DType::kBFloat16;
  options.max_batch_tokens = 2 * kPromptTokens;
  options.threads = std::atoi(argv[2]);
  options.on_ready = [&](int, const Mesh&, Engine* engine) {
    clock.Watch(engine);
  };
  auto group = MiniGroup::Start(options);
  RING_CHECK(group.ok()) << group.status().ToString();
  const Times prompts = MeasurePrompts(group->get(), &clock);
  const Times decode = MeasureDecode(group->get(), &clock);
  Report(file->config, options.threads, prompts, decode);
  std::filesystem::remove_all(folder);
  return 0;
}

}  // namespace
}  // namespace ring

int main(int argc, char** argv) { return ring::Main(argc, argv); }
