// One function body, built for several instruction sets, chosen at run time.
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

namespace ring::simd {

enum class Isa {
  kPortable,  // 4 fp32 lanes: SSE2, NEON
  kAvx2,      // 8 lanes, with FMA
  kAvx512,    // 16 lanes: F, BW, DQ, VL
};

// The one that ActiveCpuIsa (kernels/linear/cpu_isa.h) allows.
Isa ActiveIsa();

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
// pass pointers and numbers.
template <typename Kernel, typename... Args>
void DispatchTo([[maybe_unused]] Isa isa, Args... args) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) {
    internal::RunAvx512<Kernel, Args...>(args...);
    return;
  }
  if (isa == Isa::kAvx2) {
    internal::RunAvx2<Kernel, Args...>(args...);
    return;
  }
#endif
  Kernel::template Run<4>(args...);
}

template <typename Kernel, typename... Args>
void Dispatch(Args... args) {
  DispatchTo<Kernel, Args...>(ActiveIsa(), args...);
}

}  // namespace ring::simd
