// A block owns one row, which lies in a slot of each rank's region. It pushes
// its own rank's row into the slots of the peers, raises its flag there, waits
// for the peers' flags here, and then reads what they have pushed.
//
// Flags and counts only grow: the k-th use of a row's slots raises its flags to
// k. Two slots alternate, so a rank that has gone on to the next use does not
// overwrite what a slower one still reads; it cannot go further, as that one
// has not pushed yet. A block waits only for the blocks of its own row on the
// other ranks, and blocks start in order of their rows, so some row can always
// proceed.
//
// Shared memory: 128 bytes and 8 bytes a rank. Bound: (ranks - 1) x row bytes
// over the links, and two crossings of a link: data with its flag, and the
// slowest peer's.
#include <cstring>
#include <functional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"
#include "kernels/cuda_stream.cuh"
#include "kernels/norm/residual_norm.cuh"
#include "parallel/host_identity.h"
#include "parallel/peer_memory.h"

namespace ring {
namespace cuda {
namespace {

constexpr int kMaxPeers = 8;
constexpr int64_t kMaxPeerRows = 256;
constexpr int kCopyThreads = kNormThreads;

// The regions of all ranks of an axis, as this rank maps them. In each:
//   flags    [ranks, rows] uint32, by the rank that raises them
//   squares  [2, ranks, rows] fp32
//   slots    [2, ranks, rows] of slot_bytes, by the rank that pushes
// and, used by the owner alone:
//   counts   [rows] uint32
struct Regions {
  char* base[kMaxPeers];
  int size;
  int rank;
  int64_t rows;
  int64_t slot_bytes;

  __host__ __device__ int64_t Cells() const { return size * rows; }
  __host__ __device__ int64_t CountsOffset() const { return Cells() * 4; }
  __host__ __device__ int64_t SquaresOffset() const {
    return CountsOffset() + rows * 4;
  }
  __host__ __device__ int64_t SlotsOffset() const {
    return (SquaresOffset() + 2 * Cells() * 4 + 255) / 256 * 256;
  }
  __host__ __device__ int64_t Bytes() const {
    return SlotsOffset() + 2 * Cells() * slot_bytes;
  }

  __device__ uint32_t* Flag(int owner, int from, int64_t row) const {
    return reinterpret_cast<uint32_t*>(base[owner]) + from * rows + row;
  }
  __device__ uint32_t* Count(int64_t row) const {
    return reinterpret_cast<uint32_t*>(base[rank] + CountsOffset()) + row;
  }
  __device__ float* Squares(int owner, uint32_t use, int from,
                            int64_t row) const {
    return reinterpret_cast<float*>(base[owner] + SquaresOffset()) +
           (use % 2) * Cells() + from * rows + row;
  }
  __device__ char* Slot(int owner, uint32_t use, int from, int64_t row) const {
    return base[owner] + SlotsOffset() +
           ((use % 2) * Cells() + from * rows + row) * slot_bytes;
  }
};

__device__ void Raise(uint32_t* flag, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(value)
               : "memory");
}

__device__ uint32_t Look(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(flag)
               : "memory");
  return value;
}

// Called by the whole block.
template <typename Unit>
__device__ void CopyBytes(const void* from, void* to, int64_t bytes) {
  const int64_t units = bytes / static_cast<int64_t>(sizeof(Unit));
  for (int64_t i = threadIdx.x; i < units; i += kCopyThreads) {
    static_cast<Unit*>(to)[i] = static_cast<const Unit*>(from)[i];
  }
}

// Called by the whole block when it has pushed its row: tells the peers, and
// returns when they have pushed theirs.
__device__ void MeetPeers(const Regions& regions, int64_t row, uint32_t use) {
  __syncthreads();
  const int peer = threadIdx.x;
  if (peer < regions.size && peer != regions.rank) {
    __threadfence_system();
    Raise(regions.Flag(peer, regions.rank, row), use);
    const uint32_t* const flag = regions.Flag(regions.rank, peer, row);
    while (static_cast<int32_t>(Look(flag) - use) < 0) {
    }
  }
  if (threadIdx.x == 0) *regions.Count(row) = use;
  __syncthreads();
}

struct ReduceArgs {
  Regions regions;
  const void* partial;
  int64_t row_bytes;
  int64_t begin[kMaxPeers];  // first of the rows that each rank keeps
  const float* squares;      // of the partial's rows, or null
  ResidualNormArgs sum;      // parts come from the regions
};

// Unit: what a thread pushes at a time.
template <typename Part, typename Out, typename Unit>
__global__ void __launch_bounds__(kNormThreads)
    PushAddAndNorm(const __grid_constant__ ReduceArgs args) {
  __shared__ float shared[kNormWarps];
  __shared__ float squares[kMaxPeers];
  const Regions& regions = args.regions;
  const int64_t row = blockIdx.x;
  const uint32_t use = *regions.Count(row) + 1;
  const char* const partial = static_cast<const char*>(args.partial);
  for (int step = 1; step < regions.size; ++step) {
    const int peer = (regions.rank + step) % regions.size;
    const int64_t source = args.begin[peer] + row;
    CopyBytes<Unit>(partial + source * args.row_bytes,
                    regions.Slot(peer, use, regions.rank, row), args.row_bytes);
    if (args.squares != nullptr && threadIdx.x == 0) {
      *regions.Squares(peer, use, regions.rank, row) = args.squares[source];
    }
  }
  MeetPeers(regions, row, use);

  const int64_t own_row = args.begin[regions.rank] + row;
  if (args.squares != nullptr) {
    if (threadIdx.x < regions.size) {
      squares[threadIdx.x] =
          threadIdx.x == regions.rank
              ? args.squares[own_row]
              : *regions.Squares(regions.rank, use, threadIdx.x, row);
    }
    __syncthreads();
  }
  const ResidualNormArgs& sum = args.sum;
  AddAndNormRow<Out>(
      sum, row,
      [&](int part, int i) {
        const char* const from =
            part == regions.rank ? partial + own_row * args.row_bytes
                                 : regions.Slot(regions.rank, use, part, row);
        return Widen(reinterpret_cast<const Part*>(from)[i]);
      },
      [&](int part) {
        if (args.squares == nullptr) return 1.0f;
        const int first = part / sum.parts_per_group * sum.parts_per_group;
        float total = 0;
        for (int p = first; p < first + sum.parts_per_group; ++p) {
          total += squares[p];
        }
        return InverseRms(total, sum.group_width, sum.group_eps);
      },
      shared);
}

struct GatherArgs {
  Regions regions;
  const void* send;
  void* recv;
  int64_t bytes;  // of each rank, cut into rows of slot_bytes
};

template <typename Unit>
__global__ void __launch_bounds__(kCopyThreads)
    PushAndCollect(const __grid_constant__ GatherArgs args) {
  const Regions& regions = args.regions;
  const int64_t row = blockIdx.x;
  const uint32_t use = *regions.Count(row) + 1;
  const int64_t begin = row * regions.slot_bytes;
  const int64_t rest = args.bytes - begin;
  const int64_t bytes = rest < regions.slot_bytes ? rest : regions.slot_bytes;
  const char* const send = static_cast<const char*>(args.send) + begin;
  for (int step = 1; step < regions.size; ++step) {
    const int peer = (regions.rank + step) % regions.size;
    CopyBytes<Unit>(send, regions.Slot(peer, use, regions.rank, row), bytes);
  }
  MeetPeers(regions, row, use);
  for (int from = 0; from < regions.size; ++from) {
    char* const to = static_cast<char*>(args.recv) + from * args.bytes + begin;
    if (from != regions.rank) {
      CopyBytes<Unit>(regions.Slot(regions.rank, use, from, row), to, bytes);
    } else if (to != send) {
      CopyBytes<Unit>(send, to, bytes);
    }
  }
}

// Calls body(Unit()) with the widest unit that fits `bits`: addresses and
// sizes, or-ed.
template <typename Body>
void WithUnit(uint64_t bits, Body body) {
  if (bits % sizeof(uint4) == 0) {
    body(uint4());
  } else if (bits % sizeof(uint16_t) == 0) {
    body(uint16_t());
  } else {
    body(uint8_t());
  }
}

uint64_t Bits(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer);
}

class PeerMemoryImpl final : public PeerMemory {
 public:
  explicit PeerMemoryImpl(const Options& options) : options_(options) {
    regions_.size = static_cast<int>(options.members.size());
    regions_.rank = options.rank;
    regions_.rows =
        options.max_rows < kMaxPeerRows ? options.max_rows : kMaxPeerRows;
    regions_.slot_bytes = (options.max_row_bytes + 15) / 16 * 16;
  }

  // True if all ranks of the world have mapped their peers.
  absl::StatusOr<bool> Map() {
    const bool fits = regions_.size <= kMaxPeers;
    if (fits) {
      RING_ASSIGN_OR_RETURN(own_, options_.backend->Allocate(regions_.Bytes()));
    }
    Offer own = {};
    const std::string host = absl::StrCat(ThisHost().name, ThisHost().boot);
    own.host = std::hash<std::string>{}(host);
    own.shown =
        fits && cudaIpcGetMemHandle(&own.memory, own_->data()) == cudaSuccess;
    std::vector<std::string> offers;
    RING_RETURN_IF_ERROR(options_.control->AllGather(
        absl::string_view(reinterpret_cast<const char*>(&own), sizeof(own)),
        &offers));
    bool mapped = own.shown;
    for (int peer = 0; mapped && peer < regions_.size; ++peer) {
      Offer theirs;
      const std::string& bytes = offers[options_.members[peer]];
      RING_CHECK_EQ(bytes.size(), sizeof(theirs));
      std::memcpy(&theirs, bytes.data(), sizeof(theirs));
      mapped = theirs.shown && theirs.host == own.host && MapOne(peer, theirs);
    }
    cudaGetLastError();  // forgets a refusal
    std::vector<std::string> all;
    RING_RETURN_IF_ERROR(
        options_.control->AllGather(mapped ? "mapped" : "", &all));
    for (const std::string& rank : all) mapped &= !rank.empty();
    if (!mapped) Unmap();
    return mapped;
  }

  bool AllGather(const void* send, void* recv, int64_t bytes) override {
    const int64_t rows =
        (bytes + regions_.slot_bytes - 1) / regions_.slot_bytes;
    if (rows > regions_.rows) return false;
    if (rows == 0) return true;
    const GatherArgs args = {regions_, send, recv, bytes};
    WithUnit(Bits(send) | Bits(recv) | bytes, [&](auto unit) {
      PushAndCollect<decltype(unit)>
          <<<Blocks(rows, 1), kCopyThreads, 0, stream()>>>(args);
    });
    CheckLaunch("PushAndCollect");
    return true;
  }

  bool ReduceRows(const ReduceRowsArgs& call) override {
    const int64_t rows = call.keep[0].size();
    ReduceArgs args = {};
    args.regions = regions_;
    args.partial = call.partial;
    args.row_bytes =
        call.cols * static_cast<int64_t>(SizeOf(call.partial_dtype));
    if (rows > regions_.rows || args.row_bytes > regions_.slot_bytes) {
      return false;
    }
    for (int peer = 0; peer < regions_.size; ++peer) {
      if (call.keep[peer].size() != rows) return false;
      args.begin[peer] = call.keep[peer].begin;
    }
    if (rows == 0) return true;
    args.squares = call.group_scale.sum_of_squares;
    args.sum.num_parts = regions_.size;
    args.sum.rows = rows;
    args.sum.cols = call.cols;
    args.sum.residual = call.residual;
    args.sum.norm_weight = call.norm_weight;
    args.sum.eps = call.norm_eps;
    args.sum.normed = call.normed;
    args.sum.normed_dtype = call.normed_dtype;
    args.sum.parts_per_group = call.group_scale.ranks_per_group;
    args.sum.group_width = call.group_scale.group_width;
    args.sum.group_eps = call.group_scale.eps;
    WithFloatType(call.partial_dtype, [&](auto part) {
      WithFloatType(call.normed_dtype, [&](auto out) {
        WithUnit(Bits(call.partial) | args.row_bytes, [&](auto unit) {
          PushAddAndNorm<decltype(part), decltype(out), decltype(unit)>
              <<<Blocks(rows, 1), kNormThreads, 0, stream()>>>(args);
        });
      });
    });
    CheckLaunch("PushAddAndNorm");
    return true;
  }

  void Unmap() override {
    for (int peer = 0; peer < regions_.size && peer < kMaxPeers; ++peer) {
      if (peer != regions_.rank && regions_.base[peer] != nullptr) {
        RING_CUDA_CHECK(cudaIpcCloseMemHandle(regions_.base[peer]));
      }
      regions_.base[peer] = nullptr;
    }
  }

 private:
  struct Offer {
    cudaIpcMemHandle_t memory;
    uint64_t host;
    bool shown;
  };

  bool MapOne(int peer, const Offer& offer) {
    void* address = own_->data();
    if (peer != regions_.rank &&
        cudaIpcOpenMemHandle(&address, offer.memory,
                             cudaIpcMemLazyEnablePeerAccess) != cudaSuccess) {
      return false;
    }
    regions_.base[peer] = static_cast<char*>(address);
    return true;
  }

  cudaStream_t stream() const {
    return static_cast<cudaStream_t>(
        options_.backend->native_queue(Queue::kMain));
  }

  const Options options_;
  std::unique_ptr<DeviceBuffer> own_;
  Regions regions_ = {};
};

}  // namespace
}  // namespace cuda

absl::StatusOr<std::unique_ptr<PeerMemory>> PeerMemory::Create(
    const Options& options) {
  auto memory = std::make_unique<cuda::PeerMemoryImpl>(options);
  RING_ASSIGN_OR_RETURN(const bool mapped, memory->Map());
  if (!mapped) return std::unique_ptr<PeerMemory>();
  return std::unique_ptr<PeerMemory>(std::move(memory));
}

}  // namespace ring
