#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "parallel/alltoall_token_exchange.h"
#include "tests/kernels/cuda/device_arena.h"
#include "tests/parallel/collective_cases.h"

namespace ring {
namespace {

constexpr int64_t kHidden = 24;
constexpr int kTopK = 3;
constexpr int kExperts = 12;
constexpr int64_t kMaxRows = 10;

// Small integers and halves: exact in bf16, sums exact in fp32.
float XOf(int rank, int64_t row, int64_t col) {
  return static_cast<float>((rank * 5 + row * 3 + col) % 15 - 7);
}
float WeightOf(int rank, int64_t row, int slot) {
  return 0.5f * static_cast<float>((rank + row + slot) % 4 + 1);
}
// What stands for an expert: a function no two experts share.
float Expert(int layer, int expert, float x) {
  return x * static_cast<float>(expert + 1) + static_cast<float>(layer * 100);
}

struct ExchangeCase {
  std::string name;
  std::vector<int64_t> rows;                   // by rank
  int (*expert)(int rank, int row, int slot);  // global id
};

int Spread(int rank, int row, int slot) {
  return (rank * 7 + row * 5 + slot * 4) % kExperts;
}
int AlwaysTheFirst(int, int, int slot) { return slot; }

// Layer 0 contiguous, layer 1 scattered, layer 2 all on the last rank.
ExpertPlacement PlacementOver(int size) {
  std::vector<std::vector<int>> rank_of(3, std::vector<int>(kExperts));
  for (int e = 0; e < kExperts; ++e) {
    rank_of[0][e] = e * size / kExperts;
    rank_of[1][e] = (e * 5 + 2) % size;
    rank_of[2][e] = size - 1;
  }
  return *ExpertPlacement::FromTable(rank_of, size);
}

std::vector<ExchangeCase> CasesFor(int size) {
  std::vector<int64_t> uneven;
  std::vector<int64_t> one_rank(size, 0);
  one_rank[size / 2] = kMaxRows;
  for (int r = 0; r < size; ++r) uneven.push_back((r * 4 + 3) % (kMaxRows + 1));
  return {{"full", std::vector<int64_t>(size, kMaxRows), Spread},
          {"uneven", uneven, Spread},
          {"nobody", std::vector<int64_t>(size, 0), Spread},
          {"one rank alone", one_rank, Spread},
          {"same experts", uneven, AlwaysTheFirst}};
}

void CheckExchange(Communicator* world, Backend* backend,
                   const ExpertPlacement& placement, const ExchangeCase& c,
                   int layer, DType x_dtype, TokenExchange* exchange) {
  const int me = world->rank();
  const int64_t rows = c.rows[me];
  std::vector<float> x(rows * kHidden);
  std::vector<BFloat16> x_bf16(rows * kHidden);
  std::vector<int32_t> experts(rows * kTopK);
  std::vector<float> weights(rows * kTopK);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < kHidden; ++col) {
      x[row * kHidden + col] = XOf(me, row, col);
      x_bf16[row * kHidden + col] = ToBFloat16(XOf(me, row, col));
    }
    for (int j = 0; j < kTopK; ++j) {
      experts[row * kTopK + j] = c.expert(me, static_cast<int>(row), j);
      weights[row * kTopK + j] = WeightOf(me, row, j);
    }
  }
  DeviceArena arena(backend);
  const void* const x_data = x_dtype == DType::kBFloat16
                                 ? static_cast<void*>(arena.Put(x_bf16))
                                 : arena.Put(x);
  const DispatchedRows in = exchange->Dispatch(rows, x_data, arena.Put(experts),
                                               arena.Put(weights), layer);

  // A row comes here once if any of its experts lives here.
  int64_t expected_rows = 0;
  for (int r = 0; r < world->size(); ++r) {
    for (int row = 0; row < c.rows[r]; ++row) {
      bool here = false;
      for (int j = 0; j < kTopK; ++j) {
        here |= placement.RankOf(layer, c.expert(r, row, j)) == me;
      }
      expected_rows += here ? 1 : 0;
    }
  }
  ASSERT_EQ(in.rows, expected_rows);

  const auto in_x = arena.GetFloats(in.x, in.rows * kHidden, x_dtype);
  const auto in_experts = arena.Get(in.local_experts, in.rows * kTopK);
  const auto in_weights = arena.Get(in.weights, in.rows * kTopK);
  std::vector<float> y(in.rows * kHidden);
  for (int64_t i = 0; i < in.rows * kHidden; ++i) {
    const int64_t slots = i / kHidden * kTopK;
    for (int j = 0; j < kTopK; ++j) {
      const int32_t local = in_experts[slots + j];
      if (local < 0) continue;
      y[i] += in_weights[slots + j] *
              Expert(layer, placement.Owned(layer, me)[local], in_x[i]);
    }
  }
  float* const sum = arena.Put(std::vector<float>(rows * kHidden, 1.0f));
  exchange->Combine(arena.Put(y), sum);
  const std::vector<float> out = arena.Get(sum, rows * kHidden);

  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < kHidden; ++col) {
      float want = 1;
      for (int j = 0; j < kTopK; ++j) {
        want += WeightOf(me, row, j) *
                Expert(layer, c.expert(me, static_cast<int>(row), j),
                       XOf(me, row, col));
      }
      ASSERT_EQ(out[row * kHidden + col], want)
          << c.name << ", layer " << layer << ", row " << row;
    }
  }
}

}  // namespace

void TokenExchangeEqualsLocalExperts(Communicator* world, ControlChannel*,
                                     Backend* backend) {
  const ExpertPlacement placement = PlacementOver(world->size());
  for (const DType x_dtype : {DType::kFloat32, DType::kBFloat16}) {
    auto exchange = MakeAllToAllTokenExchange(
        world, &placement, backend, {kMaxRows, kHidden, kTopK, x_dtype});
    ASSERT_TRUE(exchange.ok()) << exchange.status();
    for (const ExchangeCase& c : CasesFor(world->size())) {
      for (int layer = 0; layer < placement.num_layers(); ++layer) {
        CheckExchange(world, backend, placement, c, layer, x_dtype,
                      exchange->get());
      }
    }
  }
  const auto other = ExpertPlacement::Contiguous(1, 4, world->size() + 1);
  EXPECT_EQ(MakeAllToAllTokenExchange(world, &*other, backend,
                                      {1, 1, 1, DType::kFloat32})
                .status()
                .code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace ring
