// Hopper's instructions behind plain functions: barriers in shared memory, bulk
// copies of tensor tiles, and products of a warpgroup. Operand tiles in shared
// memory have rows of 128 bytes, swizzled by the copy engine, and start on
// multiples of 1,024 bytes.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/tensor_core.cuh"

namespace ring::cuda {

// The same place in the shared memory of another block of the cluster.
__device__ inline uint32_t PeerAddress(uint32_t address, uint32_t rank) {
  uint32_t peer;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(peer)
      : "r"(address), "r"(rank));
  return peer;
}

__device__ inline uint32_t ClusterRank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of the cluster wait for each other.
__device__ inline void ClusterBarrier() {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;" ::
          : "memory");
}

// ---- Barriers. A phase ends when `count` arrivals and all announced bytes are
// in; waiting for parity p returns once the phase of that parity is over.

__device__ inline void InitBarrier(uint64_t* barrier, uint32_t count) {
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(count));
}
// Makes initialised barriers known to the copy engine and the cluster.
__device__ inline void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void ArriveExpecting(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   SharedAddress(barrier)),
               "r"(bytes)
               : "memory");
}

// Arrives at the barrier in the block `rank` of the cluster.
__device__ inline void ArriveAt(uint64_t* barrier, uint32_t rank) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(
                   PeerAddress(SharedAddress(barrier), rank))
               : "memory");
}

__device__ inline void WaitBarrier(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra ready;\n"
      "bra again;\n"
      "ready:\n"
      "}" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// Stores 4 bytes in the block `rank` of the cluster and counts them at the
// barrier there.
__device__ inline void StoreToPeer(void* to, uint32_t value, uint64_t* barrier,
                                   uint32_t rank) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, "
      "[%2];" ::"r"(PeerAddress(SharedAddress(to), rank)),
      "r"(value), "r"(PeerAddress(SharedAddress(barrier), rank))
      : "memory");
}

// ---- Bulk copies of a tile from global to shared memory, counted at a barrier
// in bytes. Elements outside of the tensor become zeros.

// To the same place in all blocks of the cluster that `mask` names.
__device__ inline void CopyTileToCluster(const CUtensorMap* map, int x, int y,
                                         void* to, uint64_t* barrier,
                                         uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::"
      "bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(
          SharedAddress(to)),
      "l"(map), "r"(x), "r"(y), "r"(SharedAddress(barrier)), "h"(mask)
      : "memory");
}

__device__ inline void CopyTile(const CUtensorMap* map, int x, int y, void* to,
                                uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::"
      "bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(SharedAddress(to)),
      "l"(map), "r"(x), "r"(y), "r"(SharedAddress(barrier))
      : "memory");
}

__device__ inline void CopyTile(const CUtensorMap* map, int x, int y, int z,
                                void* to, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::"
      "bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(SharedAddress(to)),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(SharedAddress(barrier))
      : "memory");
}

__device__ inline void PrefetchMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// ---- Warpgroups.

template <int kRegisters>
__device__ inline void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Before the first product that reads registers written otherwise.
__device__ inline void FenceProducts() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most kPending committed groups are unfinished.
template <int kPending>
__device__ inline void WaitProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving accesses of `values` across a wait.
template <int kCount>
__device__ inline void PinRegisters(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

// The lower half of the descriptor of operand rows of 128 bytes in shared
// memory: the start in units of 16 bytes. The upper half is the same for all:
// 1,024 bytes from one group of 8 rows to the next, 128-byte swizzle.
__device__ inline uint32_t TileDescriptor(uint32_t address) {
  return (uint32_t{1} << 16) | ((address & 0x3ffff) >> 4);
}
#define RING_DESCRIPTOR_HIGH "0x40000040"
// What a step of 32 bytes along the rows adds to a descriptor.
inline constexpr uint32_t kDescriptorStep = 32 >> 4;

#define RING_F4(d, i) \
  "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define RING_F16(d, i) \
  RING_F4(d, i), RING_F4(d, (i) + 4), RING_F4(d, (i) + 8), RING_F4(d, (i) + 12)
#define RING_F64(d, i)                                          \
  RING_F16(d, i), RING_F16(d, (i) + 16), RING_F16(d, (i) + 32), \
      RING_F16(d, (i) + 48)

// d = a b^T + (accumulate ? d : 0) for 64 rows of a, 128 rows of b and 32 bytes
// along both. Value d[4 j + 2 h + e] of lane l in warp w of the warpgroup is
// row 16 w + 8 h + l / 4, output 8 j + 2 (l % 4) + e.
__device__ inline void MultiplyE4M3(float (&d)[64], uint32_t a, uint32_t b,
                                    bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      ".reg .b64 a, b;\n"
      "setp.ne.b32 p, %66, 0;\n"
      "mov.b64 a, {%64, " RING_DESCRIPTOR_HIGH
      "};\n"
      "mov.b64 b, {%65, " RING_DESCRIPTOR_HIGH
      "};\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63},"
      " a, b, p, 1, 1;\n"
      "}"
      : RING_F64(d, 0)
      : "r"(a), "r"(b), "r"(static_cast<int>(accumulate)));
}

// d += a b^T: as MultiplyE4M3 for 256 rows of b, in bf16.
__device__ inline void MultiplyBf16(float (&d)[128], uint32_t a, uint32_t b) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      ".reg .b64 a, b;\n"
      "mov.b64 a, {%128, " RING_DESCRIPTOR_HIGH
      "};\n"
      "mov.b64 b, {%129, " RING_DESCRIPTOR_HIGH
      "};\n"
      "setp.eq.b32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
      "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"
      "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"
      "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,"
      "%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,"
      "%123,%124,%125,%126,%127},"
      " a, b, p, 1, 1, 0, 0;\n"
      "}"
      : RING_F64(d, 0), RING_F64(d, 64)
      : "r"(a), "r"(b));
}

#undef RING_F4
#undef RING_F16
#undef RING_F64
#undef RING_DESCRIPTOR_HIGH

}  // namespace ring::cuda
