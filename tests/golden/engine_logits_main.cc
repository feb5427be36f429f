// Runs a small random model on a mesh of threads, for oracle_test.py.
//
//   engine_logits write DIR OPTIONS.json      write checkpoints
//   engine_logits run OPTIONS.json            print logits
//
// One JSON object in, one out; the Python side holds the oracle.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "kernels/base/check.h"
#include "kernels/base/log.h"
#include "kernels/base/mutex.h"
#include "nlohmann/json.hpp"
#include "ring/v1/plan.pb.h"
#include "tests/support/mini_group.h"
#include "tests/support/tiny_checkpoint.h"

namespace ring {
namespace {

using nlohmann::json;

// Writes TinyConfigJson with the given fields changed into `dir`.
void Write(const json& options, const std::string& dir) {
  json config = TinyConfigJson();
  config.update(options.at("config"));
  TinyCheckpointOptions checkpoint;
  checkpoint.seed = options.value("seed", 1);
  checkpoint.block_fp8 = options.value("block_fp8", false);
  const TinyCheckpoint written(config, checkpoint);
  std::filesystem::create_directories(dir);
  std::filesystem::copy(written.dir(), dir,
                        std::filesystem::copy_options::recursive);
}

// Logits after the prompt, put together from the ranks' vocabulary slices, and
// the greedy continuation.
json Run(const json& options) {
  MiniGroup::Options group_options;
  group_options.model_dir = options.at("model");
  group_options.dp = options.at("dp");
  group_options.tp = options.at("tp");
  group_options.exchange = options.at("exchange") == "alltoall"
                               ? Scheduler::ExchangePolicy::kAllToAll
                               : Scheduler::ExchangePolicy::kReplicated;
  group_options.sliced_experts = options.value("sliced_experts", false);
  group_options.activation_dtype =
      options.at("activations") == "fp32" ? DType::kFloat32 : DType::kBFloat16;
  group_options.decay_mode = options.value("decay", "index") == "index_m1"
                                 ? DecayMode::kIndexM1
                                 : DecayMode::kIndex;
  group_options.max_batch_tokens = options.value("max_batch_tokens", 512);
  group_options.prompt_cut = options.value("prompt_cut", 64);
  group_options.max_context = options.value("max_context", 4096);
  group_options.kv_tokens =
      std::max(group_options.kv_tokens, group_options.max_context);
  const int vocab_size = options.at("vocab_size");
  group_options.num_token_ids = vocab_size;

  Mutex mutex;
  std::vector<float> logits;
  bool taken = false;
  group_options.on_ready = [&](int, const Mesh& mesh, Engine* engine) {
    const Range slice = mesh.vocab();
    const int group = mesh.dp_rank();
    engine->set_step_observer([&, slice, group](const v1::BatchPlan& plan,
                                                const float* values) {
      // Only the step that ends the prompt; decode steps follow.
      const v1::GroupPlan& part = plan.groups(group);
      if (part.samples_size() == 0 || !part.segments(0).prompt()) return;
      MutexLock lock(&mutex);
      logits.resize(vocab_size);
      std::copy(values, values + slice.size(), logits.begin() + slice.begin);
      taken = true;
    });
  };
  auto group = MiniGroup::Start(group_options);
  RING_CHECK(group.ok()) << group.status().ToString();
  GenerationRequest request;
  request.prompt = options.at("ids").get<std::vector<int32_t>>();
  request.max_new_tokens = options.value("new_tokens", 1);
  const Completion completion = (*group)->Run(request);
  RING_CHECK(completion.error.ok()) << completion.error.ToString();
  // All ranks end, so that all have shown their slices.
  group->reset();
  MutexLock lock(&mutex);
  RING_CHECK(taken);
  return {{"logits", logits}, {"tokens", completion.tokens}};
}

int Main(int argc, char** argv) {
  SetLogLevel(LogLevel::kWarning);
  const std::string command = argc > 1 ? argv[1] : "";
  if (command == "write" && argc == 4) {
    std::ifstream file(argv[3]);
    Write(json::parse(file), argv[2]);
    return 0;
  }
  if (command == "run" && argc == 3) {
    // A list of runs, answered by a list of results.
    std::ifstream file(argv[2]);
    json results = json::array();
    for (const json& options : json::parse(file)) {
      results.push_back(Run(options));
    }
    std::cout << results << "\n";
    return 0;
  }
  std::cerr << "usage: engine_logits write DIR OPTIONS | run OPTIONS\n";
  return 2;
}

}  // namespace
}  // namespace ring

int main(int argc, char** argv) { return ring::Main(argc, argv); }
