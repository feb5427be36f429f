// Which vector instructions this process uses, and one function body built for
// several of them, chosen at run time.
//
//   struct AddKernel {
//     template <int kLanes>
//     RING_INLINE static void Run(const float* x, float* y, int64_t n) {...}
//   };
//   simd::Dispatch<AddKernel>(x, y, n);
//
// Run is inlined into three wrappers that differ in their target attribute, so
// no file needs compiler flags of its own and no inline function of a header
// can leak wide instructions into the rest of the program. Rules for Run and
// what it calls: RING_INLINE throughout, no lambdas, and vectors (vec.h) only
// as locals or by reference, since their calling convention depends on the
// target.
#pragma once

#define RING_INLINE inline __attribute__((always_inline))

namespace ring {

// In ascending order; each includes the ones before it.
enum class CpuIsa {
  kPortable,    // 4 fp32 lanes: SSE2, NEON
  kAvx2,        // 8 lanes, with FMA
  kAvx512,      // 16 lanes: F, BW, DQ, VL
  kAvx512Bf16,  // the same, and products of bf16 pairs
  kAmxBf16,     // the same, and products of bf16 tiles
};

inline constexpr CpuIsa kAllCpuIsas[] = {CpuIsa::kPortable, CpuIsa::kAvx2,
                                         CpuIsa::kAvx512, CpuIsa::kAvx512Bf16,
                                         CpuIsa::kAmxBf16};

// "portable", "avx2", "avx512", "avx512_bf16" or "amx_bf16".
const char* Name(CpuIsa isa);

// The highest one that this build and this processor have.
CpuIsa DetectCpuIsa();

// DetectCpuIsa(), or what the environment variable RING_CPU_ISA names. A name
// that is unknown or beyond the processor is logged once and ignored. Decided
// on the first call. Thread-safe.
CpuIsa ActiveCpuIsa();

namespace simd {
namespace internal {

#if defined(__x86_64__)
template <typename Kernel, typename... Args>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))) void
RunAvx512(Args... args) {
  Kernel::template Run<16>(args...);
}

template <typename Kernel, typename... Args>
__attribute__((target("avx2,fma"))) void RunAvx2(Args... args) {
  Kernel::template Run<8>(args...);
}
#endif

}  // namespace internal

// Calls Kernel::Run<lanes>(args...) as built for `isa`. Arguments are copied:
// pass pointers and numbers. REQUIRES: isa <= DetectCpuIsa().
template <typename Kernel, typename... Args>
void DispatchTo([[maybe_unused]] CpuIsa isa, Args... args) {
#if defined(__x86_64__)
  if (isa >= CpuIsa::kAvx512) {
    internal::RunAvx512<Kernel, Args...>(args...);
    return;
  }
  if (isa == CpuIsa::kAvx2) {
    internal::RunAvx2<Kernel, Args...>(args...);
    return;
  }
#endif
  Kernel::template Run<4>(args...);
}

template <typename Kernel, typename... Args>
void Dispatch(Args... args) {
  DispatchTo<Kernel, Args...>(ActiveCpuIsa(), args...);
}

}  // namespace simd
}  // namespace ring
