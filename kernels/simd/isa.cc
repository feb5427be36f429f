#include "kernels/simd/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>

#include "absl/strings/string_view.h"
#include "kernels/base/log.h"

namespace ring {
namespace {

#if defined(__x86_64__)
// Whether the processor multiplies tiles of bf16 and the kernel lets this
// process use the tile registers, which it has to be asked for.
bool MayUseTiles() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kAmxBf16 = 1u << 22;
  constexpr unsigned kAmxTile = 1u << 24;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) ||
      (edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0) {
    return false;
  }
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

CpuIsa ChooseCpuIsa() {
  const CpuIsa best = DetectCpuIsa();
  const char* wish = std::getenv("RING_CPU_ISA");
  if (wish == nullptr || *wish == '\0') return best;
  for (CpuIsa isa : kAllCpuIsas) {
    if (isa <= best && absl::string_view(wish) == Name(isa)) return isa;
  }
  LogWarning("RING_CPU_ISA ignored: unknown, or this processor lacks it",
             "value", wish, "using", Name(best));
  return best;
}

}  // namespace

const char* Name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPortable:
      return "portable";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kAvx512Bf16:
      return "avx512_bf16";
    case CpuIsa::kAmxBf16:
      return "amx_bf16";
  }
  return "?";
}

CpuIsa DetectCpuIsa() {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    return CpuIsa::kPortable;
  }
  if (!__builtin_cpu_supports("avx512f") ||
      !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") ||
      !__builtin_cpu_supports("avx512vl")) {
    return CpuIsa::kAvx2;
  }
  if (!__builtin_cpu_supports("avx512bf16")) return CpuIsa::kAvx512;
  static const bool may_use_tiles = MayUseTiles();
  return may_use_tiles ? CpuIsa::kAmxBf16 : CpuIsa::kAvx512Bf16;
#else
  return CpuIsa::kPortable;
#endif
}

CpuIsa ActiveCpuIsa() {
  static const CpuIsa isa = ChooseCpuIsa();
  return isa;
}

}  // namespace ring
