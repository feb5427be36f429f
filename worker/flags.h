// The command line of ring-worker.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ring {

// Values as given; what depends on the model or the mesh is checked later.
struct WorkerFlags {
  std::string coordinator;  // HOST:PORT
  // PEM files, as CoordinatorLink::Options.
  std::string tls_ca;
  std::string tls_cert;
  std::string tls_key;
  std::string model;           // folder
  std::string device = "cpu";  // cpu, cuda, cuda:N
  bool share_gpu = false;      // several ranks of a host may name one GPU
  int tp = 1;
  int dp = 0;  // 0: all ranks that tp leaves
  int max_sequences = 16;
  int64_t kv_tokens = 65536;
  int64_t max_batch_tokens = 2048;
  int64_t max_context = 0;  // 0: ModelConfig::ContextLength
  int max_queued = 256;
  std::string weights = "as-stored";  // as-stored, fp8
  std::string activations = "bf16";   // bf16, fp32
  std::string load = "checkpoint";    // checkpoint, dummy
  std::string decay = "index";        // index, index_m1
  std::string experts = "owned";      // owned, sliced
  std::string moe_exchange = "auto";  // auto, alltoall, replicated
  bool deterministic = false;         // bits do not depend on company
  int threads = 0;                    // 0: cores of the host / its ranks
  std::string incident_file;
  bool check = false;
  bool bench = false;
  std::vector<int> bench_batches = {1, 8, 32, 128, 256};
  int64_t bench_context = 4096;                 // tokens before the decode
  std::vector<int64_t> bench_prompts = {4096};  // tokens of prompts to time
  bool debug_sync = false;
};

// INVALID_ARGUMENT holds the message for the user. If `exit_code` is set to
// something other than -1, help or version was printed and the process should
// end with it.
absl::StatusOr<WorkerFlags> ParseWorkerFlags(int argc, char** argv,
                                             int* exit_code);

}  // namespace ring
