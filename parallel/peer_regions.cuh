// Memory of ranks that map each other's, and how they meet there.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/norm/residual_norm.cuh"

namespace ring::cuda {

inline constexpr int kMaxPeers = 8;
inline constexpr int64_t kMaxPeerRows = 256;
inline constexpr int kCopyThreads = kNormThreads;
// Rows for all peers together that travel as packets. The links take longer
// over more than a crossing does.
inline constexpr int64_t kMaxPacketRows = 16;

// The regions of all ranks of an axis, as this rank maps them. In each:
//   flags    [ranks, rows] uint32, by the rank that raises them
//   squares  [2, ranks, rows] fp32
//   slots    [2, ranks, rows] of slot_bytes, by the rank that pushes
//   packets  [2, ranks, packet_rows] of a slot in packets, and a sum of squares
// and, used by the owner alone:
//   counts   [rows] uint32
struct Regions {
  char* base[kMaxPeers];
  int size;
  int rank;
  int64_t rows;
  int64_t packet_rows;
  int64_t slot_bytes;

  __host__ __device__ int64_t Cells() const { return size * rows; }
  __host__ __device__ int64_t CountsOffset() const { return Cells() * 4; }
  __host__ __device__ int64_t SquaresOffset() const {
    return CountsOffset() + rows * 4;
  }
  __host__ __device__ int64_t SlotsOffset() const {
    return (SquaresOffset() + 2 * Cells() * 4 + 255) / 256 * 256;
  }
  __host__ __device__ int64_t PacketsOffset() const {
    return SlotsOffset() + 2 * Cells() * slot_bytes;
  }
  // One for eight bytes.
  __host__ __device__ int64_t RowPackets() const { return slot_bytes / 8 + 1; }
  __host__ __device__ int64_t Bytes() const {
    return PacketsOffset() + 2 * size * packet_rows * RowPackets() *
                                 static_cast<int64_t>(sizeof(uint4));
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
  __device__ uint4* Packets(int owner, uint32_t use, int from,
                            int64_t row) const {
    return reinterpret_cast<uint4*>(base[owner] + PacketsOffset()) +
           ((use % 2) * size + from) * PacketsOfRank() + row * RowPackets();
  }
  __device__ int PacketsOfRank() const {
    return static_cast<int>(packet_rows * RowPackets());
  }
};

__device__ inline void Raise(uint32_t* flag, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(value)
               : "memory");
}

__device__ inline uint32_t Look(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(flag)
               : "memory");
  return value;
}

__device__ inline void Send(uint4* packet, uint2 words, uint32_t use) {
  asm volatile(
      "st.volatile.global.v4.u32 [%0], {%1, %2, %3, %2};" ::"l"(packet),
      "r"(words.x), "r"(use), "r"(words.y)
      : "memory");
}
__device__ inline uint4 LookAt(const uint4* packet) {
  uint4 found;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(found.x), "=r"(found.y), "=r"(found.z), "=r"(found.w)
               : "l"(packet));
  return found;
}
// What a packet brings, given what it looked like before.
__device__ inline uint2 Await(const uint4* packet, uint4 found, uint32_t use) {
  while (found.y != use || found.w != use) found = LookAt(packet);
  return {found.x, found.z};
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
// returns when they have pushed theirs. The barrier and the release make what
// all threads have pushed visible before the flag.
__device__ inline void MeetPeers(const Regions& regions, int64_t row,
                                 uint32_t use) {
  __syncthreads();
  const int peer = threadIdx.x;
  if (peer < regions.size && peer != regions.rank) {
    Raise(regions.Flag(peer, regions.rank, row), use);
    const uint32_t* const flag = regions.Flag(regions.rank, peer, row);
    while (static_cast<int32_t>(Look(flag) - use) < 0) {
    }
  }
  if (threadIdx.x == 0) *regions.Count(row) = use;
  __syncthreads();
}

}  // namespace ring::cuda
