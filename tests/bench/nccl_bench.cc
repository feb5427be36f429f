// What the collectives of a step cost between GPUs:
//   mpirun -np 4 nccl_bench
// RING_TEST_GPUS says how many GPUs the host has; ranks that share one show
// that the program works, not how fast anything is.
#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "kernels/backend_factory.h"
#include "kernels/base/check.h"
#include "parallel/alltoall_token_exchange.h"
#include "parallel/communicator_factory.h"
#include "tests/support/shared_gpu.h"

namespace ring {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kHidden = 4096;
constexpr int kTopK = 8;
constexpr int kExperts = 256;
constexpr int64_t kMaxRows = 256;
constexpr int64_t kPromptRows = 8192;  // of a group's step
constexpr int kRounds = 7;

double MicrosecondsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start)
      .count();
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2,
                   values.end());
  return values[values.size() / 2];
}

// One rank of the measurement.
class Bench {
 public:
  // `direct` writes into peers' memory where it can, `plain` never does, `raw`
  // is the library without our communicators.
  Bench(MpiRuntime* mpi, Backend* backend, Communicator* direct,
        Communicator* plain, ncclComm_t raw, bool shares)
      : mpi_(mpi),
        backend_(backend),
        direct_(direct),
        plain_(plain),
        raw_(raw),
        calls_(shares ? 2 : 50),
        rounds_(shares ? 1 : kRounds) {}

  // Random values: zeros would be cheaper to move.
  float* Floats(int64_t n) {
    std::vector<float> values(n);
    std::mt19937 random(mpi_->rank() + 1);
    for (float& v : values) v = static_cast<float>(random() % 2001) / 1000 - 1;
    auto* const to = static_cast<float*>(Memory(n * sizeof(float)));
    backend_->CopyToDevice(to, values.data(), n * sizeof(float));
    backend_->Synchronize();
    return to;
  }
  void* Memory(int64_t bytes) {
    auto made = backend_->Allocate(bytes);
    RING_CHECK(made.ok()) << made.status().ToString();
    buffers_.push_back(*std::move(made));
    return buffers_.back()->data();
  }

  // Microseconds of one call: many in a recorded graph, the median replay.
  double Recorded(absl::FunctionRef<void()> call) {
    const int recording = ++recordings_;
    const auto replay = [&] {
      Meet();
      const auto start = Clock::now();
      backend_->RunStep(recording, [&] {
        for (int i = 0; i < calls_; ++i) call();
      });
      backend_->Synchronize();
      return MicrosecondsSince(start) / calls_;
    };
    replay();
    std::vector<double> times;
    for (int round = 0; round < rounds_; ++round) times.push_back(replay());
    return Median(times);
  }
  // Microseconds of one call that cannot be recorded, host included.
  double Eager(absl::FunctionRef<void()> call) {
    std::vector<double> times;
    call();
    for (int round = 0; round < rounds_; ++round) {
      Meet();
      const auto start = Clock::now();
      for (int i = 0; i < calls_; ++i) call();
      backend_->Synchronize();
      times.push_back(MicrosecondsSince(start) / calls_);
    }
    return Median(times);
  }

  void MeasureReduce(int64_t rows, DType dtype);
  void MeasureExchange(int64_t rows);
  void MeasurePrompt();
  bool prints() const { return mpi_->rank() == 0; }

 private:
  // An exchange between all ranks, and what it is given for `rows` random rows.
  struct MoeRows {
    std::unique_ptr<TokenExchange> exchange;
    const int32_t* experts;  // [rows, kTopK]
    const float* x;          // [rows, kHidden], whatever its type
    const float* weights;    // [rows, kTopK]
    const float* y;          // [arrivals, kHidden]
    float* out;              // [rows, kHidden]
  };
  MoeRows MakeMoeRows(int64_t rows);

  void Meet() {
    std::vector<std::string> unused;
    RING_CHECK(mpi_->control()->AllGather("", &unused).ok());
  }

  MpiRuntime* const mpi_;
  Backend* const backend_;
  Communicator* const direct_;
  Communicator* const plain_;
  const ncclComm_t raw_;
  const int calls_;
  const int rounds_;
  int recordings_ = 0;
  std::vector<std::unique_ptr<DeviceBuffer>> buffers_;
};

// ReduceRows and AllGather beside what the library's own calls take.
void Bench::MeasureReduce(int64_t rows, DType dtype) {
  const int64_t values = rows * kHidden;
  const int64_t bytes = values * static_cast<int64_t>(SizeOf(dtype));
  float* const partial = Floats(values);
  const std::vector<RowRange> keep(mpi_->size(), RowRange{0, rows});
  ReduceRowsArgs args;
  args.partial = partial;
  args.partial_dtype = dtype;
  args.rows = rows;
  args.cols = kHidden;
  args.keep = keep;
  args.residual = Floats(values);
  args.norm_weight = Floats(kHidden);
  args.norm_eps = 1e-6f;
  args.normed = Memory(values * 2);
  args.normed_dtype = DType::kBFloat16;
  void* const gathered = Memory(bytes * mpi_->size());
  const auto stream =
      static_cast<cudaStream_t>(backend_->native_queue(Queue::kMain));
  const ncclDataType_t type =
      dtype == DType::kFloat32 ? ncclFloat : ncclBfloat16;
  const double us[] = {
      Recorded([&] { direct_->ReduceRows(args); }),
      Recorded([&] { plain_->ReduceRows(args); }),
      Recorded([&] {
        RING_CHECK(ncclAllReduce(partial, partial, values, type, ncclSum, raw_,
                                 stream) == ncclSuccess);
      }),
      Recorded([&] { direct_->AllGather(partial, gathered, bytes); }),
      Recorded([&] { plain_->AllGather(partial, gathered, bytes); }),
      Recorded([&] {
        RING_CHECK(ncclAllGather(partial, gathered, values, type, raw_,
                                 stream) == ncclSuccess);
      })};
  if (!prints()) return;
  std::printf("| %lld | %s | %lld |", static_cast<long long>(rows), Name(dtype),
              static_cast<long long>(bytes / 1024));
  for (const double time : us) std::printf(" %.1f |", time);
  std::printf("\n");
}

Bench::MoeRows Bench::MakeMoeRows(int64_t rows) {
  const int ranks = mpi_->size();
  const auto placement = ExpertPlacement::Contiguous(1, kExperts, ranks);
  RING_CHECK(placement.ok());
  auto exchange = MakeAllToAllTokenExchange(
      direct_, &*placement, backend_, {rows, kHidden, kTopK, DType::kBFloat16});
  RING_CHECK(exchange.ok()) << exchange.status().ToString();
  std::mt19937 random(mpi_->rank() + 1);
  std::vector<int32_t> chosen;
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<int32_t> ids(kExperts);
    for (int e = 0; e < kExperts; ++e) ids[e] = e;
    std::shuffle(ids.begin(), ids.end(), random);
    chosen.insert(chosen.end(), ids.begin(), ids.begin() + kTopK);
  }
  const int64_t slot_bytes = rows * kTopK * sizeof(int32_t);
  auto* const experts = static_cast<int32_t*>(Memory(slot_bytes));
  backend_->CopyToDevice(experts, chosen.data(), slot_bytes);
  backend_->Synchronize();
  return {*std::move(exchange),           experts,
          Floats(rows * kHidden),         Floats(rows * kTopK),
          Floats(rows * ranks * kHidden), Floats(rows * kHidden)};
}

// Both exchanges of a MoE layer for `rows` rows on every rank, without the
// experts' work.
void Bench::MeasureExchange(int64_t rows) {
  const int ranks = mpi_->size();
  const MoeRows moe = MakeMoeRows(rows);
  const double dispatch = Eager([&] {
    moe.exchange->Dispatch(rows, moe.x, moe.experts, moe.weights, 0);
  });
  const double combine =
      Recorded([&] { moe.exchange->Combine(moe.y, moe.out); });

  // Replicated: every rank gets every row and adds its experts' results up.
  char* const all_x = static_cast<char*>(Memory(rows * ranks * kHidden * 2));
  const int64_t slot_bytes = rows * kTopK * sizeof(int32_t);
  char* const all_experts = static_cast<char*>(Memory(slot_bytes * ranks));
  char* const all_weights = static_cast<char*>(Memory(slot_bytes * ranks));
  std::vector<RowRange> keep;
  for (int r = 0; r < ranks; ++r) keep.push_back({r * rows, (r + 1) * rows});
  ReduceRowsArgs reduce;
  reduce.partial = moe.y;
  reduce.rows = rows * ranks;
  reduce.cols = kHidden;
  reduce.keep = keep;
  reduce.residual = moe.out;
  const auto replicated = [&](Communicator* world) {
    return Recorded([&] {
      world->AllGather(moe.x, all_x, rows * kHidden * 2);
      world->AllGather(moe.experts, all_experts, slot_bytes);
      world->AllGather(moe.weights, all_weights, slot_bytes);
      world->ReduceRows(reduce);
    });
  };
  const double us[] = {dispatch, combine, dispatch + combine,
                       replicated(direct_), replicated(plain_)};
  if (!prints()) return;
  std::printf("| %lld |", static_cast<long long>(rows));
  for (const double time : us) std::printf(" %.1f |", time);
  std::printf("\n");
}

// What moves in a layer of a prompt's step, whose rows are spread over the
// ranks: GB/s is what a rank gets from others, in the time with sum or packing.
void Bench::MeasurePrompt() {
  const int64_t ranks = mpi_->size();
  const int64_t rows = kPromptRows / ranks;
  const int64_t values = kPromptRows * kHidden;
  const MoeRows moe = MakeMoeRows(rows);
  std::vector<RowRange> keep;
  for (int64_t r = 0; r < ranks; ++r)
    keep.push_back({r * rows, (r + 1) * rows});
  ReduceRowsArgs reduce;
  reduce.partial = moe.y;
  reduce.rows = kPromptRows;
  reduce.cols = kHidden;
  reduce.keep = keep;
  reduce.residual = moe.out;
  char* const all = static_cast<char*>(Memory(values * 2));
  const auto stream =
      static_cast<cudaStream_t>(backend_->native_queue(Queue::kMain));
  const auto print = [&](const char* what, double us, double bytes) {
    if (prints()) {
      std::printf("| %s | %.0f | %.0f |\n", what, us, bytes / us * 1e-3);
    }
  };
  const double remote = static_cast<double>(ranks - 1) / ranks;
  print("sum, each rank its rows, fp32",
        Eager([&] { direct_->ReduceRows(reduce); }), remote * values * 4);
  print(
      "ncclReduceScatter, fp32", Eager([&] {
        RING_CHECK(ncclReduceScatter(moe.y, moe.out, values / ranks, ncclFloat,
                                     ncclSum, raw_, stream) == ncclSuccess);
      }),
      remote * values * 4);
  print("gather, bf16", Eager([&] {
          direct_->AllGather(all + mpi_->rank() * rows * kHidden * 2, all,
                             rows * kHidden * 2);
        }),
        remote * values * 2);
  print("ncclAllGather, bf16", Eager([&] {
          RING_CHECK(ncclAllGather(all + mpi_->rank() * rows * kHidden * 2, all,
                                   values / ranks, ncclBfloat16, raw_,
                                   stream) == ncclSuccess);
        }),
        remote * values * 2);
  int64_t arrived = 0;
  const double dispatch = Eager([&] {
    arrived =
        moe.exchange->Dispatch(rows, moe.x, moe.experts, moe.weights, 0).rows;
  });
  print("dispatch, bf16", dispatch, remote * arrived * kHidden * 2);
  print("combine, fp32", Eager([&] { moe.exchange->Combine(moe.y, moe.out); }),
        remote * arrived * kHidden * 4);
}

// The library without our communicator, for comparison.
ncclComm_t ConnectRaw(MpiRuntime* mpi) {
  ncclUniqueId id = {};
  if (mpi->rank() == 0) RING_CHECK(ncclGetUniqueId(&id) == ncclSuccess);
  std::string bytes(id.internal, sizeof(id.internal));
  RING_CHECK(mpi->control()->Broadcast(&bytes).ok());
  std::memcpy(id.internal, bytes.data(), bytes.size());
  ncclComm_t comm = nullptr;
  RING_CHECK(ncclCommInitRank(&comm, mpi->size(), id, mpi->rank()) ==
             ncclSuccess);
  return comm;
}

int Main() {
  auto mpi = MpiRuntime::Create({});
  if (!mpi.ok()) return 1;
  const bool shares = RanksShareAGpu((*mpi)->local_size());
  auto backend = MakeBackend(GpuOfRank((*mpi)->local_rank()), 1);
  if (!backend.ok()) {
    std::fprintf(stderr, "%s\n", backend.status().ToString().c_str());
    return 1;
  }
  Progress progress;
  MeshConfig config;
  config.world_size = config.tp = (*mpi)->size();
  config.rank = (*mpi)->rank();
  const auto mesh = Mesh::Create(config);
  CommunicatorOptions options;
  options.collectives = {backend->get(), &progress, kPromptRows, kHidden};
  options.share_gpu = shares;
  auto direct = MakeCommunicators(mpi->get(), *mesh, options);
  options.peer_memory = false;
  auto plain = MakeCommunicators(mpi->get(), *mesh, options);
  if (!direct.ok() || !plain.ok()) {
    std::fprintf(stderr, "%s %s\n", direct.status().ToString().c_str(),
                 plain.status().ToString().c_str());
    return 1;
  }
  const ncclComm_t raw = ConnectRaw(mpi->get());
  {
    Bench bench(mpi->get(), backend->get(), direct->world.get(),
                plain->world.get(), raw, shares);
    if (bench.prints()) {
      std::printf("%d ranks, %s%s\n", (*mpi)->size(), (*backend)->description(),
                  shares ? ", shared" : "");
      std::printf(
          "\nmicroseconds, rows of %lld; sum = with residual and norm\n"
          "| rows | type | KB | sum, peer memory | sum, NCCL | ncclAllReduce | "
          "gather, peer memory | gather, NCCL | ncclAllGather |\n"
          "|---|---|---|---|---|---|---|---|---|\n",
          static_cast<long long>(kHidden));
    }
    for (const DType dtype : {DType::kBFloat16, DType::kFloat32}) {
      for (int64_t rows = 1; rows <= kMaxRows; rows *= shares ? 16 : 2) {
        bench.MeasureReduce(rows, dtype);
      }
    }
    if (bench.prints()) {
      std::printf(
          "\nmicroseconds of a MoE layer's exchange, rows of %lld on each "
          "rank, top %d of %d experts\n"
          "| rows | dispatch | combine | both | replicated, peer memory | "
          "replicated, NCCL |\n"
          "|---|---|---|---|---|---|\n",
          static_cast<long long>(kHidden), kTopK, kExperts);
    }
    for (int64_t rows = 1; rows <= kMaxRows; rows *= shares ? 16 : 2) {
      bench.MeasureExchange(rows);
    }
    // By sockets it would take minutes.
    if (!shares) {
      if (bench.prints()) {
        std::printf(
            "\n%lld rows of %lld over all ranks\n| what | us | GB/s |\n"
            "|---|---|---|\n",
            static_cast<long long>(kPromptRows),
            static_cast<long long>(kHidden));
      }
      bench.MeasurePrompt();
    }
  }
  if (!direct->Close().ok() || !plain->Close().ok()) return 1;
  // After Close, which drops the records that hold its collectives.
  if (ncclCommDestroy(raw) != ncclSuccess) return 1;
  return (*mpi)->Shutdown().ok() ? 0 : 1;
}

}  // namespace
}  // namespace ring

int main() { return ring::Main(); }
