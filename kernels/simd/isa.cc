#include "kernels/simd/isa.h"

#include "kernels/linear/cpu_isa.h"

namespace ring::simd {

Isa ActiveIsa() {
  switch (ActiveCpuIsa()) {
    case CpuIsa::kPortable:
      return Isa::kPortable;
    case CpuIsa::kAvx2:
      return Isa::kAvx2;
    case CpuIsa::kAvx512:
    case CpuIsa::kAvx512Bf16:
      return Isa::kAvx512;
  }
  return Isa::kPortable;
}

}  // namespace ring::simd
