// Run under mpirun by ranks that may share a GPU.
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend_factory.h"
#include "parallel/communicator_factory.h"
#include "tests/kernels/cuda/device_arena.h"
#include "tests/parallel/collective_cases.h"
#include "tests/parallel/mpi_world.h"
#include "tests/support/shared_gpu.h"

namespace ring {
namespace {

// Exit status of a rank whose communicator reports an error.
constexpr int kReported = 70;

Backend* TestBackend() {
  // Never freed: CUDA is gone when static objects are destroyed.
  static Backend* const backend = [] {
    const int rank = MpiWorld::Get().runtime->local_rank();
    auto made = MakeBackend(GpuOfRank(rank), 1);
    RING_CHECK(made.ok()) << made.status().ToString();
    return made->release();
  }();
  return backend;
}

bool SharesAGpu() {
  return RanksShareAGpu(MpiWorld::Get().runtime->local_size());
}

// `peer_memory`: small collectives go around NCCL.
absl::StatusOr<MeshCommunicators> Connect(int tp, int dp, bool share_gpu,
                                          bool peer_memory,
                                          int64_t max_cols = kMaxCaseCols) {
  MpiWorld& world = MpiWorld::Get();
  MeshConfig config;
  config.world_size = tp * dp;
  config.rank = world.runtime->rank();
  config.tp = tp;
  config.dp = dp;
  const auto mesh = Mesh::Create(config);
  if (!mesh.ok()) return mesh.status();
  CommunicatorOptions options;
  options.collectives = {TestBackend(), &world.progress, kMaxCaseRows, max_cols,
                         kMaxCasePartsBytes};
  options.share_gpu = share_gpu;
  options.peer_memory = peer_memory;
  options.on_failure = [](const std::string& what) {
    std::fprintf(stderr, "reported: %s\n", what.c_str());
    _exit(kReported);
  };
  return MakeCommunicators(world.runtime, *mesh, options);
}

// One connection for all cases: making one takes seconds.
template <bool kPeerMemory>
class NcclTest : public testing::TestWithParam<int> {
 protected:
  static void SetUpTestSuite() {
    auto made =
        Connect(MpiWorld::Get().runtime->size(), 1, SharesAGpu(), kPeerMemory);
    ASSERT_TRUE(made.ok()) << made.status();
    axes_ = new MeshCommunicators(*std::move(made));
  }
  static void TearDownTestSuite() {
    const auto start = std::chrono::steady_clock::now();
    const absl::Status closed = axes_->Close();
    EXPECT_TRUE(closed.ok()) << closed;
    EXPECT_LT(std::chrono::steady_clock::now() - start,
              std::chrono::seconds(30));
    delete axes_;
  }
  static void RunCase(int index) {
    CollectiveCases()[index].run(
        axes_->world.get(), MpiWorld::Get().runtime->control(), TestBackend());
  }

  static MeshCommunicators* axes_;
};
template <bool kPeerMemory>
MeshCommunicators* NcclTest<kPeerMemory>::axes_ = nullptr;

std::string CaseName(const testing::TestParamInfo<int>& info) {
  return CollectiveCases()[info.param].name;
}
const auto kAllCases =
    testing::Range(0, static_cast<int>(CollectiveCases().size()));

using NcclCommunicatorTest = NcclTest<false>;
TEST_P(NcclCommunicatorTest, PassesTheCase) { RunCase(GetParam()); }
INSTANTIATE_TEST_SUITE_P(All, NcclCommunicatorTest, kAllCases, CaseName);

using PeerMemoryTest = NcclTest<true>;
TEST_P(PeerMemoryTest, PassesTheCase) { RunCase(GetParam()); }
INSTANTIATE_TEST_SUITE_P(All, PeerMemoryTest, kAllCases, CaseName);

// Every collective in one recorded step, replayed over new values. The record
// is still there when the suite closes the communicators.
void CheckRecordedCollectives(Communicator* world) {
  Backend* const backend = TestBackend();
  const int n = world->size();
  const int me = world->rank();
  constexpr int64_t kRows = 4;
  constexpr int64_t kCols = 8;
  constexpr int64_t kValues = kRows * kCols;
  DeviceArena arena(backend);
  auto* const own = arena.Make<float>(kValues);
  auto* const gathered = arena.Make<float>(n * kValues);
  auto* const swapped = arena.Make<float>(n * kValues);
  auto* const sum = arena.Make<float>(kValues);
  const std::vector<RowRange> keep(n, RowRange{0, kRows});
  const std::vector<int64_t> rows(n, kRows);
  for (int round = 0; round < 4; ++round) {
    const auto value = [&](int rank, int64_t i) {
      return static_cast<float>(rank * 1000 + round * 100 + i);
    };
    std::vector<float> host(kValues);
    for (int64_t i = 0; i < kValues; ++i) host[i] = value(me, i);
    backend->CopyToDevice(own, host.data(), kValues * sizeof(float));
    backend->Synchronize();
    backend->RunStep(/*bucket=*/1, [&] {
      backend->Zero(sum, kValues * sizeof(float));
      world->AllGather(own, gathered, kValues * sizeof(float));
      world->AllToAll({{gathered, swapped, kCols * sizeof(float)}}, rows, rows);
      ReduceRowsArgs reduce;
      reduce.partial = own;
      reduce.rows = kRows;
      reduce.cols = kCols;
      reduce.keep = keep;
      reduce.residual = sum;
      world->ReduceRows(reduce);
    });
    const std::vector<float> all = arena.Get(gathered, n * kValues);
    const std::vector<float> mine = arena.Get(swapped, n * kValues);
    const std::vector<float> total = arena.Get(sum, kValues);
    for (int64_t i = 0; i < kValues; ++i) {
      float want = 0;
      for (int r = 0; r < n; ++r) {
        ASSERT_EQ(all[r * kValues + i], value(r, i)) << "round " << round;
        // Everybody sends me what it gathered from me.
        ASSERT_EQ(mine[r * kValues + i], value(me, i)) << "round " << round;
        want += value(r, i);
      }
      ASSERT_EQ(total[i], want) << "round " << round;
    }
  }
}

using NcclRecordTest = NcclTest<false>;
TEST_F(NcclRecordTest, CollectivesCanBeRecorded) {
  CheckRecordedCollectives(axes_->world.get());
}
using PeerMemoryRecordTest = NcclTest<true>;
TEST_F(PeerMemoryRecordTest, CollectivesCanBeRecorded) {
  CheckRecordedCollectives(axes_->world.get());
}

// Many sums and gathers without a pause, of few rows, whose words carry their
// own mark, and of more, which are announced.
using PeerMemoryOrderTest = NcclTest<true>;
TEST_F(PeerMemoryOrderTest, ManyCallsInARowMixNothingUp) {
  constexpr int kRounds = 100;
  constexpr int64_t kCols = kMaxCaseCols;
  const int n = axes_->world->size();
  const int me = axes_->world->rank();
  DeviceArena arena(TestBackend());
  struct Sum {
    int64_t rows;
    float* partial;
    float* total;
    std::vector<RowRange> keep;
  };
  std::vector<Sum> sums;
  const auto value = [](int rank, int64_t rows, int64_t i) {
    return static_cast<float>(rank * 3 + rows + i % 7);
  };
  for (const int64_t rows : {1, 40, 16, 17}) {
    std::vector<float> values(rows * kCols);
    for (int64_t i = 0; i < rows * kCols; ++i) values[i] = value(me, rows, i);
    sums.push_back({rows, arena.Put(values),
                    arena.Put(std::vector<float>(rows * kCols, 0.0f)),
                    std::vector<RowRange>(n, RowRange{0, rows})});
  }
  auto* const gathered = arena.Make<float>(n * kCols);
  for (int round = 0; round < kRounds; ++round) {
    for (const Sum& sum : sums) {
      ReduceRowsArgs reduce;
      reduce.partial = sum.partial;
      reduce.rows = sum.rows;
      reduce.cols = kCols;
      reduce.keep = sum.keep;
      reduce.residual = sum.total;
      axes_->world->ReduceRows(reduce);
    }
    axes_->world->AllGather(sums[round % 4].partial, gathered,
                            kCols * int64_t{sizeof(float)});
  }
  for (const Sum& sum : sums) {
    const std::vector<float> total = arena.Get(sum.total, sum.rows * kCols);
    for (int64_t i = 0; i < sum.rows * kCols; ++i) {
      float want = 0;
      for (int r = 0; r < n; ++r) want += kRounds * value(r, sum.rows, i);
      ASSERT_EQ(total[i], want) << sum.rows << " rows, value " << i;
    }
  }
  const std::vector<float> all = arena.Get(gathered, n * kCols);
  for (int64_t i = 0; i < n * kCols; ++i) {
    ASSERT_EQ(all[i], value(static_cast<int>(i / kCols),
                            sums[(kRounds - 1) % 4].rows, i % kCols));
  }
}

// Sums of random values, whose bits depend on the order of the additions, by
// both ways: few rows and more, rows that do not fill 16 bytes, rows of the
// model's size and beyond what threads hold in registers.
TEST(PeerMemoryBitsTest, SumsEqualThoseOfNccl) {
  constexpr int64_t kMaxCols = 4100;
  const int n = MpiWorld::Get().runtime->size();
  auto with = Connect(n, 1, SharesAGpu(), /*peer_memory=*/true, kMaxCols);
  auto without = Connect(n, 1, SharesAGpu(), /*peer_memory=*/false, kMaxCols);
  ASSERT_TRUE(with.ok()) << with.status();
  ASSERT_TRUE(without.ok()) << without.status();
  std::mt19937 random(with->world->rank());
  const auto floats = [&](int64_t count) {
    std::vector<float> values(count);
    for (float& v : values) v = static_cast<float>(random()) * 1e-9f - 2.0f;
    return values;
  };
  for (const auto& [rows, cols] :
       std::vector<std::pair<int64_t, int64_t>>{{5, 1},
                                                {5, 33},
                                                {5, 96},
                                                {40, 96},
                                                {2, 4096},
                                                {20, 4096},
                                                {2, kMaxCols}}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      for (const int groups : {0, 1}) {
        const int64_t values = rows * cols;
        DeviceArena arena(TestBackend());
        const std::vector<RowRange> keep(n, RowRange{0, rows});
        std::vector<BFloat16> bf16(values);
        for (BFloat16& x : bf16) x = ToBFloat16(floats(1)[0]);
        ReduceRowsArgs args;
        args.partial = dtype == DType::kFloat32
                           ? static_cast<void*>(arena.Put(floats(values)))
                           : arena.Put(bf16);
        args.partial_dtype = dtype;
        args.rows = rows;
        args.cols = cols;
        args.keep = keep;
        args.norm_weight = arena.Put(std::vector<float>(cols, 1.5f));
        args.norm_eps = 1e-6f;
        if (groups != 0) {
          std::vector<float> squares = floats(rows);
          for (float& s : squares) s *= s;
          args.group_scale = {arena.Put(squares), n, 64, 1e-6f};
        }
        std::vector<std::vector<float>> results;
        for (Communicator* const world :
             {with->world.get(), without->world.get()}) {
          args.residual = arena.Put(std::vector<float>(values, 0.1f));
          float* const normed = arena.Make<float>(values);
          args.normed = normed;
          world->ReduceRows(args);
          results.push_back(arena.Get(args.residual, values));
          results.push_back(arena.Get(normed, values));
        }
        EXPECT_EQ(results[0], results[2])
            << rows << " x " << cols << ", residual";
        EXPECT_EQ(results[1], results[3])
            << rows << " x " << cols << ", normed";
      }
    }
  }
  for (const auto& axes : {&with, &without}) {
    const absl::Status closed = (*axes)->Close();
    EXPECT_TRUE(closed.ok()) << closed;
  }
}

TEST(NcclAxesTest, ConnectTheRightRanks) {
  const int size = MpiWorld::Get().runtime->size();
  const int rank = MpiWorld::Get().runtime->rank();
  for (int tp = 1; tp <= size; ++tp) {
    if (size % tp != 0) continue;
    const int dp = size / tp;
    auto axes = Connect(tp, dp, SharesAGpu(), /*peer_memory=*/true);
    ASSERT_TRUE(axes.ok()) << axes.status();
    EXPECT_EQ(axes->tp->rank(), rank % tp);
    EXPECT_EQ(axes->dp->rank(), rank / tp);
    DeviceArena arena(TestBackend());
    const int32_t* const own = arena.Put<int32_t>({rank});
    auto* const tp_ranks = arena.Make<int32_t>(tp);
    auto* const dp_ranks = arena.Make<int32_t>(dp);
    axes->tp->AllGather(own, tp_ranks, sizeof(int32_t));
    axes->dp->AllGather(own, dp_ranks, sizeof(int32_t));
    for (int t = 0; t < tp; ++t) {
      EXPECT_EQ(arena.Get(tp_ranks, tp)[t], rank / tp * tp + t);
    }
    for (int d = 0; d < dp; ++d) {
      EXPECT_EQ(arena.Get(dp_ranks, dp)[d], d * tp + rank % tp);
    }
    const absl::Status closed = axes->Close();
    EXPECT_TRUE(closed.ok()) << closed;
  }
}

TEST(NcclAxesTest, RefuseASharedGpuUnlessItIsAllowed) {
  if (!SharesAGpu()) GTEST_SKIP() << "every rank has a GPU";
  const auto axes = Connect(MpiWorld::Get().runtime->size(), 1,
                            /*share_gpu=*/false, /*peer_memory=*/true);
  ASSERT_EQ(axes.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(axes.status().message().find("ranks 0 and 1 use the same GPU"),
            absl::string_view::npos)
      << axes.status();
}

// These end the process; CTest runs each alone and looks for the report.
TEST(NcclFailureTest, DISABLED_NamesTheCollectiveOfAWrongCall) {
  setenv("NCCL_CHECK_POINTERS", "1", 1);
  auto axes = Connect(MpiWorld::Get().runtime->size(), 1, SharesAGpu(),
                      /*peer_memory=*/false);
  ASSERT_TRUE(axes.ok()) << axes.status();
  std::vector<char> host(64 * axes->world->size());
  axes->world->AllGather(host.data(), host.data(), 64);
  FAIL() << "NCCL took host memory";
}

TEST(NcclFailureTest, DISABLED_HearsOfADeadPeerWhileItWaits) {
  auto axes = Connect(MpiWorld::Get().runtime->size(), 1, SharesAGpu(),
                      /*peer_memory=*/false);
  ASSERT_TRUE(axes.ok()) << axes.status();
  if (axes->world->rank() == 1) raise(SIGKILL);
  DeviceArena arena(TestBackend());
  // More than the connection buffers.
  constexpr int64_t kBytes = int64_t{64} << 20;
  char* const all = arena.Make<char>(kBytes * axes->world->size());
  axes->world->AllGather(all + kBytes * axes->world->rank(), all, kBytes);
  TestBackend()->Synchronize();
  FAIL() << "a dead rank has answered";
}

}  // namespace
}  // namespace ring
