#include "kernels/elementwise/scatter.h"

namespace ring::cpu {

void ScatterInts(const ScatterIntsArgs& args, ThreadPool*) {
  for (int64_t i = 0; i < args.count; ++i) {
    if (args.index[i] >= 0) args.out[args.index[i]] = args.values[i];
  }
}

}  // namespace ring::cpu
