// From stored bytes to what a shard holds: widening and block quantisation.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/weights/block_quantize.h"
#include "worker/model/load_plan.h"

namespace ring {

// out[i] = source[i] in fp32. `source` holds `count` bf16 or fp32 elements.
void Widen(const std::byte* source, DType dtype, int64_t count, float* out);

// What has to be read for the block rows [begin, end) of a slice to quantise,
// counted from the first block row that the slice touches.
SliceSource BlockRowSource(const TensorSlice& slice, int64_t begin,
                           int64_t end);
int64_t CountBlockRows(const TensorSlice& slice);

// How block rows [begin, end) of `slice` are quantised into `memory`, the
// shard's. `source` is BlockRowSource(slice, begin, end), rows packed, as
// stored; both lie where the op runs. Threads may run disjoint block rows.
QuantizeBlocksArgs BlockRowQuantization(const TensorSlice& slice, int64_t begin,
                                        int64_t end, const void* source,
                                        std::byte* memory);

}  // namespace ring
