#include "worker/start_check.h"

#include <algorithm>

#include "absl/algorithm/container.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/base/gigabytes.h"
#include "kernels/base/status_macros.h"

namespace ring {
namespace {

// What to change for a need that is too large. Weights come first: where they
// alone are too much, no smaller cache helps.
std::string Advice(const WorkerFlags& flags, const MemoryNeed& need,
                   bool weights_fit) {
  if (!weights_fit) return "use more hosts or GPUs, or --weights fp8";
  const EngineBytes& engine = need.engine;
  if (engine.kv_pages >= std::max(engine.state_slots, engine.workspace)) {
    return absl::StrCat("lower --kv-tokens ", flags.kv_tokens);
  }
  if (engine.state_slots >= engine.workspace) {
    return absl::StrCat("lower --max-sequences ", flags.max_sequences);
  }
  return absl::StrCat("lower --max-batch-tokens ", flags.max_batch_tokens);
}

}  // namespace

absl::StatusOr<std::string> FirstMistake(ControlChannel* control,
                                         const std::string& host_name,
                                         const absl::Status& own) {
  // A message is the host's name and what is wrong there, if anything is.
  const std::string text(own.message());
  std::vector<std::string> all;
  RING_RETURN_IF_ERROR(control->AllGather(
      own.ok() ? "" : absl::StrCat(host_name, "\n", text), &all));
  const auto first = absl::c_find_if(
      all, [](const std::string& message) { return !message.empty(); });
  if (first == all.end()) return "";
  const size_t host_bytes = first->find('\n');
  const std::string mistake = first->substr(host_bytes + 1);
  const bool everywhere = absl::c_all_of(all, [&](const std::string& message) {
    const size_t end = message.find('\n');
    return end != std::string::npos && message.substr(end + 1) == mistake;
  });
  if (everywhere) return mistake;
  return absl::StrCat("rank ", first - all.begin(), " on ",
                      first->substr(0, host_bytes), ": ", mistake);
}

absl::StatusOr<int64_t> BytesOfNeighbours(
    ControlChannel* control, const std::vector<HostIdentity>& hosts,
    int64_t own) {
  std::vector<std::string> all;
  RING_RETURN_IF_ERROR(control->AllGather(absl::StrCat(own), &all));
  int64_t sum = 0;
  for (int rank = 0; rank < control->size(); ++rank) {
    if (rank == control->rank()) continue;
    const HostIdentity& own_host = hosts[control->rank()];
    if (hosts[rank].boot != own_host.boot ||
        hosts[rank].pid_namespace != own_host.pid_namespace) {
      continue;
    }
    int64_t bytes = 0;
    RING_CHECK(absl::SimpleAtoi(all[rank], &bytes)) << all[rank];
    sum += bytes;
  }
  return sum;
}

absl::Status CheckMemory(const WorkerFlags& flags, const MemoryNeed& need,
                         int64_t neighbours, int64_t available) {
  if (need.total() + neighbours <= available) return absl::OkStatus();
  const EngineBytes& engine = need.engine;
  const std::string others =
      neighbours == 0 ? ""
                      : absl::StrCat(", the other ranks of this host ",
                                     Gigabytes(neighbours));
  // The neighbours are much like this rank.
  const double share = static_cast<double>(need.total()) /
                       static_cast<double>(need.total() + neighbours);
  const bool weights_fit = static_cast<double>(need.weights) <=
                           share * static_cast<double>(available);
  return absl::ResourceExhaustedError(absl::StrCat(
      "not enough memory: this rank needs ", Gigabytes(need.total()), " (",
      Gigabytes(need.weights), " of weights, ", Gigabytes(engine.kv_pages),
      " of KV pages, ", Gigabytes(engine.state_slots), " of state slots, ",
      Gigabytes(engine.workspace), " of workspace)", others, "; ",
      Gigabytes(available),
      " are available: ", Advice(flags, need, weights_fit)));
}

}  // namespace ring
