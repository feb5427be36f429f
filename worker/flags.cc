#include "worker/flags.h"

#include <sstream>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "kernels/base/flag_mistake.h"
#include "kernels/base/host_port.h"

namespace ring {
namespace {

// Whether it is there, the backend knows.
std::string CheckDeviceName(const std::string& name) {
  absl::string_view number = name;
  int gpu = 0;
  const bool valid = name == "cpu" || name == "cuda" ||
                     (absl::ConsumePrefix(&number, "cuda:") &&
                      absl::SimpleAtoi(number, &gpu) && gpu >= 0);
  if (valid) return {};
  return "\"" + name + "\" is no device: use cpu, cuda or cuda:N";
}

}  // namespace

absl::StatusOr<WorkerFlags> ParseWorkerFlags(int argc, char** argv,
                                             int* exit_code) {
  *exit_code = -1;
  WorkerFlags flags;
  CLI::App app(
      "One rank of a Ringmaster worker group. Start it with mpirun or srun.",
      "ring-worker");
  app.option_defaults()->always_capture_default();
  app.set_config("--config", "",
                 "File with the same names as these flags; flags win");
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.set_version_flag("--version", "ringmaster " RING_VERSION);
  app.add_option("--coordinator", flags.coordinator,
                 "HOST:PORT of the coordinator to join");
  app.add_option("--tls-ca", flags.tls_ca,
                 "PEM file: authority that signed the coordinator's "
                 "certificate; without it plaintext");
  app.add_option("--tls-cert", flags.tls_cert,
                 "PEM file: certificate to show to the coordinator");
  app.add_option("--tls-key", flags.tls_key, "PEM file: key of --tls-cert");
  app.add_option("--model", flags.model,
                 "Folder of a Hugging Face checkpoint; required");
  app.add_option("--device", flags.device,
                 "Where the model runs: cpu, cuda (each rank of a host its own "
                 "GPU) or cuda:N")
      ->check(CheckDeviceName);
  app.add_flag("--share-gpu", flags.share_gpu,
               "Let several ranks of a host name one GPU with cuda:N");
  app.add_option("--tp", flags.tp,
                 "Tensor-parallel ranks that share each sequence")
      ->check(CLI::Range(1, 1024));
  app.add_option("--dp", flags.dp,
                 "Data-parallel groups; 0: as many as the ranks make")
      ->check(CLI::Range(0, 1024));
  app.add_option("--max-sequences", flags.max_sequences,
                 "Sequences that run at once, per data-parallel group")
      ->check(CLI::Range(1, 65536));
  app.add_option("--kv-tokens", flags.kv_tokens,
                 "Tokens that the KV pages hold, per data-parallel group")
      ->check(CLI::Range(int64_t{64}, int64_t{1} << 36));
  app.add_option("--max-batch-tokens", flags.max_batch_tokens,
                 "Tokens of one step, per data-parallel group")
      ->check(CLI::Range(int64_t{65}, int64_t{1} << 20));
  app.add_option("--max-context", flags.max_context,
                 "Tokens of a sequence, prompt and completion; 0: what the "
                 "model allows")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30));
  app.add_option("--max-queued", flags.max_queued,
                 "Requests that wait for a slot; more are refused")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--weights", flags.weights,
                 "Form of the big matrices: as-stored, or fp8 (128 x 128 "
                 "blocks, quantised while loading)")
      ->check(CLI::IsMember({"as-stored", "fp8"}));
  app.add_option("--activations", flags.activations,
                 "Type between the layers: bf16 or fp32")
      ->check(CLI::IsMember({"bf16", "fp32"}));
  app.add_option("--load", flags.load,
                 "checkpoint, or dummy: random weights for any config.json")
      ->check(CLI::IsMember({"checkpoint", "dummy"}));
  app.add_option("--decay", flags.decay,
                 "How the decay of linear layers shrinks with depth: index "
                 "(vendor's engine) or index_m1 (transformers)")
      ->check(CLI::IsMember({"index", "index_m1"}));
  app.add_option(
         "--experts", flags.experts,
         "owned: every routed expert whole on one rank; sliced: 1/tp of "
         "each on every rank, which balances few users (--dp 1)")
      ->check(CLI::IsMember({"owned", "sliced"}));
  app.add_option("--moe-exchange", flags.moe_exchange,
                 "How rows meet their experts: auto, alltoall (owned experts "
                 "only) or replicated")
      ->check(CLI::IsMember({"auto", "alltoall", "replicated"}));
  app.add_flag(
      "--deterministic", flags.deterministic,
      "The same bits for the same request whatever runs beside it, on "
      "this mesh and processor: one kernel for all numbers of rows, one "
      "exchange (CPU only)");
  app.add_option("--threads", flags.threads,
                 "Threads of this rank; 0: cores of the host over its ranks")
      ->check(CLI::Range(0, 4096));
  app.add_option("--incident-file", flags.incident_file,
                 "Also append the line about a failed rank to this file");
  CLI::Option* check =
      app.add_flag("--check", flags.check,
                   "Report whether the checkpoint fits this program and tp, "
                   "without reading tensor data, and exit");
  app.add_flag("--bench", flags.bench,
               "Time decode steps and prompts without a coordinator, print a "
               "table and exit")
      ->excludes(check);
  app.add_option("--bench-batches", flags.bench_batches,
                 "Sequences that decode at once, one line of the table each")
      ->delimiter(',')
      ->check(CLI::Range(1, 65536));
  app.add_option("--bench-context", flags.bench_context,
                 "Tokens that every sequence has before it decodes")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  app.add_option("--bench-prompts", flags.bench_prompts,
                 "Lengths of prompts to time, in tokens")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  app.add_flag(
      "--debug-sync", flags.debug_sync,
      "Wait after every op of the device, so that the incident line of "
      "a device error names the op; slow");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::ostringstream out, err;
    const int code = app.exit(error, out, err);
    if (code == 0) {  // help or version
      std::fputs(out.str().c_str(), stdout);
      *exit_code = 0;
      return flags;
    }
    return absl::InvalidArgumentError(
        FlagMistake(error.get_name(), error.what()));
  }
  // required() would be checked before flags that CLI11 does not know.
  if (flags.model.empty()) {
    return absl::InvalidArgumentError("--model DIR is missing");
  }
  if (!flags.check && !flags.bench && flags.coordinator.empty()) {
    return absl::InvalidArgumentError("--coordinator HOST:PORT is missing");
  }
  if (!flags.coordinator.empty()) {
    const absl::Status address = ParseHostPort(flags.coordinator).status();
    if (!address.ok()) {
      return absl::InvalidArgumentError("--coordinator " +
                                        std::string(address.message()));
    }
  }
  if (flags.experts == "sliced" && flags.dp > 1) {
    return absl::InvalidArgumentError(
        "--experts sliced needs --dp 1, not " + std::to_string(flags.dp) +
        ": every rank holds a slice of every expert for one group's rows");
  }
  if (flags.experts == "sliced" && flags.moe_exchange == "alltoall") {
    return absl::InvalidArgumentError(
        "--moe-exchange alltoall needs --experts owned: rows cannot travel to "
        "the owner of a sliced expert");
  }
  if (flags.deterministic && flags.device != "cpu") {
    return absl::InvalidArgumentError(
        "--deterministic needs --device cpu, not " + flags.device +
        ": kernels of a GPU depend on the number of rows");
  }
  if (flags.max_batch_tokens < flags.max_sequences + 64) {
    return absl::InvalidArgumentError(
        "--max-batch-tokens = " + std::to_string(flags.max_batch_tokens) +
        " is below --max-sequences + 64 = " +
        std::to_string(flags.max_sequences + 64));
  }
  return flags;
}

}  // namespace ring
