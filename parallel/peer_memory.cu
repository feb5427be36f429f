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
// Few rows are sums that travel as packets instead: eight bytes of a row and,
// twice, the number of the use, in one store of 16 bytes that arrives whole or
// in halves with a number each. Whoever waits looks at the packets themselves,
// so nothing is announced and a sum takes one crossing of a link; it moves
// twice the bytes.
//
// Shared memory: 128 bytes and 8 bytes a rank. Bound: (ranks - 1) x row bytes
// over the links, and, but for packets, three crossings of a link: data, word
// that it has arrived, flag.
#include <algorithm>
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
#include "parallel/peer_regions.cuh"

namespace ring {
namespace cuda {
namespace {

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

// Four columns of a row as they travel: packets of eight bytes.
template <typename Part>
struct QuadWords {
  static constexpr int kPackets = sizeof(Part) / 2;
  uint2 words[kPackets];

  __device__ void Widened(float (&x)[4]) const {
    if constexpr (sizeof(Part) == 4) {
      x[0] = __uint_as_float(words[0].x);
      x[1] = __uint_as_float(words[0].y);
      x[2] = __uint_as_float(words[1].x);
      x[3] = __uint_as_float(words[1].y);
    } else {
      x[0] = __uint_as_float(words[0].x << 16);
      x[1] = __uint_as_float(words[0].x & 0xffff0000u);
      x[2] = __uint_as_float(words[0].y << 16);
      x[3] = __uint_as_float(words[0].y & 0xffff0000u);
    }
  }
};

template <typename Part>
__device__ void WriteQuad(const QuadWords<Part>& quad, char* to) {
  if constexpr (sizeof(Part) == 4) {
    *reinterpret_cast<uint4*>(to) = {quad.words[0].x, quad.words[0].y,
                                     quad.words[1].x, quad.words[1].y};
  } else {
    *reinterpret_cast<uint2*>(to) = quad.words[0];
  }
}

template <typename Part>
__device__ QuadWords<Part> ReadQuad(const char* from, bool aligned) {
  QuadWords<Part> quad;
  if (aligned && sizeof(Part) == 4) {
    const uint4 raw = __ldcg(reinterpret_cast<const uint4*>(from));
    quad.words[0] = {raw.x, raw.y};
    quad.words[quad.kPackets - 1] = {raw.z, raw.w};
  } else if (aligned) {
    quad.words[0] = __ldcg(reinterpret_cast<const uint2*>(from));
  } else {
    Part parts[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      parts[e] = reinterpret_cast<const Part*>(from)[e];
    }
    memcpy(quad.words, parts, sizeof(parts));
  }
  return quad;
}

// A thread owns kQuads times four columns. kPackets: the rows travel as
// packets, which few blocks with many registers serve best.
template <typename Part, typename Out, bool kPackets>
__global__ void __launch_bounds__(kQuadThreads, kPackets ? 1 : 2)
    PushAddAndNormQuads(const __grid_constant__ ReduceArgs args,
                        const bool aligned) {
  using Quad = QuadWords<Part>;
  constexpr int kPartsAtOnce = kPackets ? 4 : 2;
  __shared__ float shared[kQuadThreads / kWarp];
  cudaTriggerProgrammaticLaunchCompletion();
  const Regions& regions = args.regions;
  const ResidualNormArgs& sum = args.sum;
  const int64_t row = blockIdx.x;
  const int quads = static_cast<int>(sum.cols / 4);
  bool mine[kQuads];
#pragma unroll
  for (int q = 0; q < kQuads; ++q) mine[q] = QuadColumn(q) < sum.cols;
  float weight[kQuads][4];
  LoadQuads(sum.norm_weight, sum.cols, aligned, weight);
  cudaGridDependencySynchronize();

  const uint32_t use = __ldcg(regions.Count(row)) + 1;
  const char* const partial = static_cast<const char*>(args.partial);
  const auto read_quad = [&](int64_t source, int q) {
    return ReadQuad<Part>(partial + source * args.row_bytes +
                              QuadColumn(q) * int64_t{sizeof(Part)},
                          aligned);
  };
  const int64_t own_row = args.begin[regions.rank] + row;
  Quad own[kQuads] = {};
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    if (mine[q]) own[q] = read_quad(own_row, q);
  }
  float x[kQuads][4];
  LoadQuads(sum.residual + row * sum.cols, sum.cols, aligned, x);
  for (int step = 1; step < regions.size; ++step) {
    const int peer = (regions.rank + step) % regions.size;
    const int64_t source = args.begin[peer] + row;
    uint4* const packets = regions.Packets(peer, use, regions.rank, row);
    char* const slot = regions.Slot(peer, use, regions.rank, row);
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      if (!mine[q]) continue;
      const Quad quad = source == own_row ? own[q] : read_quad(source, q);
      if constexpr (kPackets) {
#pragma unroll
        for (int p = 0; p < Quad::kPackets; ++p) {
          Send(packets + p * quads + QuadColumn(q) / 4, quad.words[p], use);
        }
      } else {
        WriteQuad(quad, slot + QuadColumn(q) * int64_t{sizeof(Part)});
      }
    }
    if (args.squares != nullptr && threadIdx.x == 0) {
      const float squares = __ldcg(args.squares + source);
      if constexpr (kPackets) {
        Send(packets + regions.RowPackets() - 1, {__float_as_uint(squares), 0},
             use);
      } else {
        *regions.Squares(peer, use, regions.rank, row) = squares;
      }
    }
  }
  if constexpr (!kPackets) MeetPeers(regions, row, use);

  const auto squares_of = [&](int part) {
    if (part == regions.rank) return __ldcg(args.squares + own_row);
    if constexpr (kPackets) {
      const uint4* const packet =
          regions.Packets(regions.rank, use, part, row) + regions.RowPackets() -
          1;
      return __uint_as_float(Await(packet, LookAt(packet), use).x);
    } else {
      return __ldcg(regions.Squares(regions.rank, use, part, row));
    }
  };
  const auto scale_of = [&](int part) {
    if (args.squares == nullptr) return 1.0f;
    const int first = part / sum.parts_per_group * sum.parts_per_group;
    float total = 0;
    for (int p = first; p < first + sum.parts_per_group; ++p) {
      total += squares_of(p);
    }
    return InverseRms(total, sum.group_width, sum.group_eps);
  };
  const uint4* const packets =
      regions.Packets(regions.rank, use, /*from=*/0, row);
  const auto packet_of = [&](int part, int q, int p) {
    return packets + part * regions.PacketsOfRank() + p * quads +
           QuadColumn(q) / 4;
  };
  // All loads are under way before the first is used.
  for (int first = 0; first < regions.size; first += kPartsAtOnce) {
    uint4 found[kPartsAtOnce][kQuads][Quad::kPackets];
    Quad arrived[kPartsAtOnce][kQuads] = {};
#pragma unroll
    for (int k = 0; k < kPartsAtOnce; ++k) {
      const int part = first + k;
      if (part >= regions.size || part == regions.rank) continue;
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        if (!mine[q]) continue;
        if constexpr (kPackets) {
#pragma unroll
          for (int p = 0; p < Quad::kPackets; ++p) {
            found[k][q][p] = LookAt(packet_of(part, q, p));
          }
        } else {
          arrived[k][q] =
              ReadQuad<Part>(regions.Slot(regions.rank, use, part, row) +
                                 QuadColumn(q) * int64_t{sizeof(Part)},
                             /*aligned=*/true);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kPartsAtOnce; ++k) {
      const int part = first + k;
      if (part >= regions.size) continue;
      const float factor = scale_of(part);
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        if (!mine[q]) continue;
        if (part == regions.rank) {
          arrived[k][q] = own[q];
        } else if constexpr (kPackets) {
#pragma unroll
          for (int p = 0; p < Quad::kPackets; ++p) {
            arrived[k][q].words[p] =
                Await(packet_of(part, q, p), found[k][q][p], use);
          }
        }
        float y[4];
        arrived[k][q].Widened(y);
#pragma unroll
        for (int e = 0; e < 4; ++e) x[q][e] += factor * y[e];
      }
    }
  }
  if constexpr (kPackets) {
    // When all threads have read it.
    __syncthreads();
    if (threadIdx.x == 0) *regions.Count(row) = use;
  }
  NormQuads<Out>(sum, row, aligned, x, weight, shared);
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
    const int64_t peers = regions_.size > 1 ? regions_.size - 1 : 1;
    regions_.packet_rows = std::min(regions_.rows, kMaxPacketRows / peers);
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
    // Which kernel it is depends on sizes alone, which ranks see alike.
    const bool quads = FitQuads(call.cols);
    const bool aligned =
        Bits(call.partial) % 16 == 0 && AllowQuadLoads(args.sum);
    WithFloatType(call.partial_dtype, [&](auto part) {
      WithFloatType(call.normed_dtype, [&](auto out) {
        if (quads) {
          using Part = decltype(part);
          using Out = decltype(out);
          LaunchDependent(rows <= regions_.packet_rows
                              ? PushAddAndNormQuads<Part, Out, true>
                              : PushAddAndNormQuads<Part, Out, false>,
                          Blocks(rows, 1), kQuadThreads, 0, stream(), args,
                          aligned);
          return;
        }
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
