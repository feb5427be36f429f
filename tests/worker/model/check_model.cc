// The report of `ring-worker --check` as a program of its own, for tests that
// drive it from outside: check_model DIR TP DP. Exits 1 on a refusal.
#include <cstdio>
#include <cstdlib>

#include "tests/worker/model/world.h"
#include "worker/model/model_check.h"

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: check_model DIR TP DP\n");
    return 2;
  }
  const int tp = std::atoi(argv[2]);
  const int dp = std::atoi(argv[3]);
  const ring::ModelCheck check =
      ring::CheckModel(argv[1],
                       [&](const ring::ModelConfig& config)
                           -> absl::StatusOr<std::vector<ring::ShardSpec>> {
                         return ring::SpecsOfWorld(config, tp, dp);
                       });
  std::fputs(check.report.c_str(), stdout);
  return check.status.ok() ? 0 : 1;
}
