// The MPI world of a test program, made by mpi_main.cc.
#pragma once

#include <cstdio>

#include "gtest/gtest.h"
#include "parallel/mpi_runtime.h"

namespace ring {

struct MpiWorld {
  MpiRuntime* runtime = nullptr;
  Progress progress;

  static MpiWorld& Get() {
    static auto* world = new MpiWorld;
    return *world;
  }
};

// The ranks whose full report would only repeat that of rank 0 print their
// failures alone.
class FailurePrinter final : public testing::EmptyTestEventListener {
 public:
  explicit FailurePrinter(int rank) : rank_(rank) {}

  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "rank %d: %s:%d: %s\n", rank_,
                 result.file_name() == nullptr ? "?" : result.file_name(),
                 result.line_number(), result.summary());
  }

 private:
  const int rank_;
};

}  // namespace ring
