#include "kernels/simd/isa.h"

#include <cstdlib>

#include "absl/strings/string_view.h"
#include "kernels/base/log.h"

namespace ring {
namespace {

CpuIsa ChooseCpuIsa() {
  const CpuIsa best = DetectCpuIsa();
  const char* wish = std::getenv("RING_CPU_ISA");
  if (wish == nullptr || *wish == '\0') return best;
  for (CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512,
                     CpuIsa::kAvx512Bf16}) {
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
  return __builtin_cpu_supports("avx512bf16") ? CpuIsa::kAvx512Bf16
                                              : CpuIsa::kAvx512;
#else
  return CpuIsa::kPortable;
#endif
}

CpuIsa ActiveCpuIsa() {
  static const CpuIsa isa = ChooseCpuIsa();
  return isa;
}

}  // namespace ring
