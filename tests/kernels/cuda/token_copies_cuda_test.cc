// CPU = CUDA for the copies of token rows, bit for bit.
#include <algorithm>
#include <random>
#include <vector>

#include "kernels/token_copies/token_copies.h"
#include "tests/kernels/cuda/device_arena.h"

namespace ring {
namespace {

constexpr int kExperts = 32;

struct Shape {
  int64_t rows;
  int64_t cols;  // fp32
  int num_ranks;
  int top_k;
};

struct Outcome {
  std::vector<int64_t> counts;
  std::vector<int32_t> copy_of;
  std::vector<int32_t> x;  // bits
  std::vector<int32_t> experts;
  std::vector<float> weights;
  std::vector<float> sums;
  bool operator==(const Outcome&) const = default;
};

Outcome SendAndAdd(Backend* backend, const Shape& s, bool aligned) {
  std::mt19937 random(s.rows * 7 + s.num_ranks);
  std::vector<int32_t> rank_of(kExperts);
  std::vector<int32_t> local_index(kExperts);
  std::vector<int32_t> owned(s.num_ranks, 0);
  for (int e = 0; e < kExperts; ++e) {
    rank_of[e] = static_cast<int32_t>(random() % s.num_ranks);
    local_index[e] = owned[rank_of[e]]++;
  }
  const int64_t slots = s.rows * s.top_k;
  std::vector<int32_t> experts(slots);
  for (int32_t& e : experts) e = static_cast<int32_t>(random() % kExperts);
  const std::vector<float> x = RandomFloats(s.rows * s.cols, 1);
  const int64_t max_copies = s.rows * std::min(s.top_k, s.num_ranks);

  DeviceArena arena(backend);
  PackCopiesArgs pack;
  // One float further: rows that 16 bytes at a time would miss.
  std::vector<float> shifted(1, 0.0f);
  shifted.insert(shifted.end(), x.begin(), x.end());
  pack.x = aligned ? arena.Put(x) : arena.Put(shifted) + 1;
  pack.row_bytes = s.cols * static_cast<int64_t>(sizeof(float));
  pack.experts = arena.Put(experts);
  pack.weights = arena.Put(RandomFloats(slots, 2));
  pack.rows = s.rows;
  pack.top_k = s.top_k;
  pack.rank_of = arena.Put(rank_of);
  pack.local_index = arena.Put(local_index);
  pack.num_ranks = s.num_ranks;
  auto* const counts = arena.Make<int64_t>(s.num_ranks);
  auto* const copy_of = arena.Make<int32_t>(s.rows * s.num_ranks);
  pack.counts = counts;
  pack.copy_of = copy_of;
  pack.packed_x = arena.Make<float>(max_copies * s.cols);
  pack.packed_experts = arena.Make<int32_t>(max_copies * s.top_k);
  pack.packed_weights = arena.Make<float>(max_copies * s.top_k);
  backend->PlanCopies({pack.experts, s.rows, s.top_k, pack.rank_of, s.num_ranks,
                       counts, copy_of});
  backend->PackCopies(pack);
  float* const sums = arena.Put(RandomFloats(s.rows * s.cols, 3));
  backend->AddCopies({static_cast<const float*>(pack.packed_x), s.rows, s.cols,
                      s.num_ranks, counts, copy_of, sums});

  Outcome outcome;
  outcome.counts = arena.Get(counts, s.num_ranks);
  outcome.copy_of = arena.Get(copy_of, s.rows * s.num_ranks);
  outcome.sums = arena.Get(sums, s.rows * s.cols);
  int64_t copies = 0;
  for (const int64_t count : outcome.counts) copies += count;
  outcome.x =
      arena.Get(static_cast<const int32_t*>(pack.packed_x), copies * s.cols);
  outcome.experts = arena.Get(pack.packed_experts, copies * s.top_k);
  outcome.weights = arena.Get(pack.packed_weights, copies * s.top_k);
  return outcome;
}

TEST(TokenCopiesCudaTest, Agrees) {
  for (const Shape& s :
       {Shape{0, 8, 4, 2}, Shape{1, 4096, 8, 8}, Shape{3, 33, 7, 3},
        Shape{1024, 8, 2, 4}, Shape{2500, 20, 4, 8}, Shape{5, 12, 1, 2}}) {
    for (const bool aligned : {true, false}) {
      EXPECT_TRUE(SendAndAdd(TestGpu(), s, aligned) ==
                  SendAndAdd(TestCpu(), s, aligned))
          << s.rows << " rows, " << s.num_ranks << " ranks";
    }
  }
}

}  // namespace
}  // namespace ring
