// For builds without oneDNN.
#include "kernels/linear/dnnl_gemm.h"

namespace ring {

bool DnnlGemmSupports(DType) { return false; }
bool DnnlGemm(const DnnlGemmArgs&, ThreadPool*) { return false; }

}  // namespace ring
