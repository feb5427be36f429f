// Which kernels attend: decode.cu and prefill.cu if pages and results are bf16,
// else AttendRows, which multiplies in fp32.
//
// WriteKv: a warp owns one KV head of one row and writes its k and v.
// AttendRows: a block of 4 warps owns one row, up to 8 query heads that share a
// KV head, and a part of the pages. D / 8 lanes read one token's key or value,
// 8 elements each, so a warp step covers 256 / D tokens; a lane holds 8
// elements of all its query heads. Scores are summed over the lanes of a token
// by halving: after the steps each lane has the score of one head. Every warp
// keeps its own running maximum, sum and output; the warps are merged at the
// end in shared memory, parts of a long context by MergeParts from scratch.
// Shared memory: 5 * heads * D floats and a few more, 20 KiB at most.
// Bound: arithmetic.
#include <algorithm>

#include "kernels/attention_rows.cuh"
#include "kernels/cuda_stream.cuh"
#include "kernels/paged_attention/paged_kernels.cuh"

namespace ring::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kElements = 8;  // of a head, per lane
constexpr int kSteps = 4;     // warp steps whose loads are in flight together
constexpr float kLowest = -1e30f;  // a maximum before the first score

// Where the KV head's entry of `position` starts, in elements.
__device__ int64_t KvOffset(const PagedAttentionArgs& args, int64_t page_row,
                            int64_t position, int kv_head) {
  const StepSegments& s = args.segments;
  const int64_t page =
      s.page_table[page_row * s.page_stride + position / kPageTokens];
  return ((page * args.num_kv_heads + kv_head) * kPageTokens +
          position % kPageTokens) *
         args.head_dim;
}

// One head of one row, normed and rotated; lane l has elements l, l + 32, ...
template <typename T, int kDim>
__device__ void LoadHead(const PagedAttentionArgs& args, int64_t row, int head,
                         const float* norm, float* exchange,
                         float (&x)[kDim / kWarp]) {
  const T* const from = static_cast<const T*>(args.qkv) + row * QkvWidth(args) +
                        int64_t{head} * kDim;
#pragma unroll
  for (int e = 0; e < kDim / kWarp; ++e) {
    x[e] = Widen(from[e * kWarp + threadIdx.x % kWarp]);
  }
  const int half = args.rope.half;
  NormAndRotateHead(x, norm, args.eps, args.rope.cos + row * half,
                    args.rope.sin + row * half, half, exchange);
}

// For the rows of segments from first_segment on.
template <typename T, typename Kv, int kDim>
__global__ void WriteKv(PagedAttentionArgs args, int first_segment) {
  __shared__ float exchange[kWarps][kDim];
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int64_t item = int64_t{blockIdx.x} * kWarps + warp;
  const int64_t row = item / args.num_kv_heads;
  const int kv_head = static_cast<int>(item % args.num_kv_heads);
  if (row >= args.rows) return;
  const int segment = SegmentOfRow(args.segments, row);
  if (segment < first_segment) return;
  const StepSegments& s = args.segments;
  const int64_t position = s.position[segment] + row - s.row_begin[segment];
  const int64_t to = KvOffset(args, s.page_row[segment], position, kv_head);
  float x[kDim / kWarp];
  LoadHead<T, kDim>(args, row, args.num_heads + kv_head, args.k_norm,
                    exchange[warp], x);
  const T* const v =
      static_cast<const T*>(args.qkv) + row * QkvWidth(args) +
      int64_t{args.num_heads + args.num_kv_heads + kv_head} * kDim;
#pragma unroll
  for (int e = 0; e < kDim / kWarp; ++e) {
    const int i = e * kWarp + lane;
    static_cast<Kv*>(args.k_pages)[to + i] = Narrow<Kv>(x[e]);
    static_cast<Kv*>(args.v_pages)[to + i] = Narrow<Kv>(Widen(v[i]));
  }
}

// The unfinished result of one query: maximum, sum and output before the
// division. Parts are [row, head, part].
struct Parts {
  int count = 1;  // 1: results are finished in place
  float* max = nullptr;
  float* sum = nullptr;
  float* o = nullptr;  // [row, head, part, D]
};

// Sums part[0..kN) over kLanes neighbouring lanes. Lane i of them returns the
// sum of part[i / (kLanes / kN)].
template <int kN, int kLanes>
__device__ float SumAndSpread(float (&part)[kN]) {
  const int lane = threadIdx.x % kWarp;
  int offset = kLanes / 2;
#pragma unroll
  for (int n = kN; n > 1; n /= 2, offset /= 2) {
    const bool upper = (lane & offset) != 0;
#pragma unroll
    for (int i = 0; i < n / 2; ++i) {
      const float send = upper ? part[i] : part[i + n / 2];
      const float keep = upper ? part[i + n / 2] : part[i];
      part[i] = keep + __shfl_xor_sync(kAllLanes, send, offset);
    }
  }
#pragma unroll
  for (; offset > 0; offset /= 2) {
    part[0] += __shfl_xor_sync(kAllLanes, part[0], offset);
  }
  return part[0];
}

template <typename T, typename Kv, typename Out, int kDim, int kHeads>
__global__ void __launch_bounds__(kWarps* kWarp)
    AttendRows(PagedAttentionArgs args, Parts parts) {
  constexpr int kLanes = kDim / kElements;       // of one token
  constexpr int kTokens = kWarp / kLanes;        // of one step
  constexpr int kStepTokens = kSteps * kTokens;  // of one iteration
  constexpr int kHeadLanes = kLanes / kHeads;    // that share a score
  static_assert(kHeads <= kLanes);
  __shared__ __align__(16) float q_shared[kHeads][kDim];
  __shared__ float max_shared[kWarps][kHeads];
  __shared__ float sum_shared[kWarps][kHeads];
  __shared__ __align__(16) float o_shared[kWarps][kHeads][kDim];

  const int part = blockIdx.x;
  const int first_head = blockIdx.y * kHeads;
  const int64_t row = blockIdx.z;
  const int kv_head = first_head / (args.num_heads / args.num_kv_heads);
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int segment = SegmentOfRow(args.segments, row);
  if (segment < 0) return;
  const StepSegments& s = args.segments;
  const int64_t length = s.position[segment] + row - s.row_begin[segment] + 1;
  const int64_t pages = (length + kPageTokens - 1) / kPageTokens;
  const int64_t part_pages = (pages + parts.count - 1) / parts.count;
  const int64_t begin = part * part_pages * kPageTokens;
  const int64_t end = min((part + 1) * part_pages * kPageTokens, length);

  // Queries, scaled by D^-0.5; o_shared serves as the rotation's buffer.
  for (int h = warp; h < kHeads; h += kWarps) {
    float x[kDim / kWarp];
    LoadHead<T, kDim>(args, row, first_head + h, args.q_norm, o_shared[warp][0],
                      x);
#pragma unroll
    for (int e = 0; e < kDim / kWarp; ++e) {
      q_shared[h][e * kWarp + lane] =
          x[e] * (1.0f / sqrtf(static_cast<float>(kDim)));
    }
  }
  __syncthreads();
  const int element = lane % kLanes * kElements;
  float q[kHeads][kElements];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) Load(&q_shared[h][element], q[h]);

  float max_score = kLowest;  // of this lane's head
  float sum = 0;              // over this lane's tokens
  float o[kHeads][kElements] = {};
  const int64_t page_row = s.page_row[segment];
  for (int64_t first = begin + warp * kStepTokens; first < end;
       first += kWarps * kStepTokens) {
    // One iteration stays within a page.
    const int64_t base = KvOffset(args, page_row, first, kv_head) +
                         lane / kLanes * kDim + element;
    const Kv* const k_from = static_cast<const Kv*>(args.k_pages) + base;
    const Kv* const v_from = static_cast<const Kv*>(args.v_pages) + base;
    float score[kSteps];
    float v[kSteps][kElements];
    float k[kSteps][kElements];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Load(k_from + step * kTokens * kDim, k[step]);
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Load(v_from + step * kTokens * kDim, v[step]);
    }
    float new_max = max_score;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      float dot[kHeads];
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        dot[h] = 0;
#pragma unroll
        for (int e = 0; e < kElements; ++e) dot[h] += q[h][e] * k[step][e];
      }
      score[step] = SumAndSpread<kHeads, kLanes>(dot);
      const int64_t token = first + step * kTokens + lane / kLanes;
      if (token >= end) {
        score[step] = -INFINITY;
        // What lies behind the context was never written by this sequence.
#pragma unroll
        for (int e = 0; e < kElements; ++e) v[step][e] = 0;
      }
      new_max = fmaxf(new_max, score[step]);
    }
#pragma unroll
    for (int offset = kLanes; offset < kWarp; offset *= 2) {
      new_max = fmaxf(new_max, __shfl_xor_sync(kAllLanes, new_max, offset));
    }
    if (__any_sync(kAllLanes, new_max > max_score)) {
      const float rescale = expf(max_score - new_max);
      sum *= rescale;
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const float factor =
            __shfl_sync(kAllLanes, rescale, h * kHeadLanes, kLanes);
#pragma unroll
        for (int e = 0; e < kElements; ++e) o[h][e] *= factor;
      }
      max_score = new_max;
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const float weight = expf(score[step] - max_score);
      sum += weight;
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const float p = __shfl_sync(kAllLanes, weight, h * kHeadLanes, kLanes);
#pragma unroll
        for (int e = 0; e < kElements; ++e) o[h][e] += p * v[step][e];
      }
    }
  }

  // The tokens of one step, which lanes kLanes apart hold.
#pragma unroll
  for (int offset = kLanes; offset < kWarp; offset *= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, offset);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        o[h][e] += __shfl_xor_sync(kAllLanes, o[h][e], offset);
      }
    }
  }
  __syncthreads();  // the queries have been read out of o_shared's buffer
  if (lane < kLanes) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        o_shared[warp][h][element + e] = o[h][e];
      }
    }
    if (lane % kHeadLanes == 0) {
      max_shared[warp][lane / kHeadLanes] = max_score;
      sum_shared[warp][lane / kHeadLanes] = sum;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kHeads * kDim; i += kWarps * kWarp) {
    const int h = i / kDim;
    const int d = i % kDim;
    float top = max_shared[0][h];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) top = fmaxf(top, max_shared[w][h]);
    float total = 0;
    float value = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float factor = expf(max_shared[w][h] - top);
      total += factor * sum_shared[w][h];
      value += factor * o_shared[w][h][d];
    }
    const int64_t query = row * args.num_heads + first_head + h;
    if (parts.count == 1) {
      static_cast<Out*>(args.out)[query * kDim + d] =
          Narrow<Out>(value / total);
      continue;
    }
    const int64_t slot = query * parts.count + part;
    parts.o[slot * kDim + d] = value;
    if (d == 0) {
      parts.max[slot] = top;
      parts.sum[slot] = total;
    }
  }
}

// A block owns one query, a thread one element. Parts without tokens have the
// sum 0 and the lowest maximum.
template <typename Out>
__global__ void MergeParts(PagedAttentionArgs args, Parts parts) {
  const int64_t query = blockIdx.x;
  if (SegmentOfRow(args.segments, query / args.num_heads) < 0) return;
  const int d = threadIdx.x;
  const int64_t first = query * parts.count;
  float top = kLowest;
  for (int p = 0; p < parts.count; ++p) top = fmaxf(top, parts.max[first + p]);
  float total = 0;
  float value = 0;
  for (int p = 0; p < parts.count; ++p) {
    const float factor = expf(parts.max[first + p] - top);
    total += factor * parts.sum[first + p];
    value += factor * parts.o[(first + p) * args.head_dim + d];
  }
  static_cast<Out*>(args.out)[query * args.head_dim + d] =
      Narrow<Out>(value / total);
}

// How many parts a context is cut into: enough blocks to fill the GPU with few
// rows, one for many. A function of the padded row count alone, so that a
// recorded graph stays valid.
int NumParts(int64_t rows) {
  if (rows <= 4) return 64;
  if (rows <= 16) return 16;
  return rows <= 64 ? 4 : 1;
}

Parts PartsOf(const PagedAttentionArgs& args, Stream* stream) {
  Parts parts;
  parts.count = NumParts(args.rows);
  if (parts.count == 1) return parts;
  const int64_t slots = args.rows * args.num_heads * parts.count;
  parts.o = stream->Scratch<float>(slots * (args.head_dim + 2));
  parts.max = parts.o + slots * args.head_dim;
  parts.sum = parts.max + slots;
  return parts;
}

template <typename T, typename Kv, int kDim>
void LaunchWrite(const PagedAttentionArgs& args, int first_segment,
                 Stream* stream) {
  WriteKv<T, Kv, kDim>
      <<<Blocks(args.rows * args.num_kv_heads, kWarps), kWarps * kWarp, 0,
         stream->get()>>>(args, first_segment);
  CheckLaunch("WriteKv");
}

template <typename T, typename Kv, typename Out, int kDim, int kHeads>
void LaunchAttend(const PagedAttentionArgs& args, Stream* stream) {
  RING_CHECK_LE(args.rows, int64_t{65535});
  const Parts parts = PartsOf(args, stream);
  const dim3 grid(static_cast<unsigned>(parts.count),
                  static_cast<unsigned>(args.num_heads / kHeads),
                  static_cast<unsigned>(args.rows));
  AttendRows<T, Kv, Out, kDim, kHeads>
      <<<grid, kWarps * kWarp, 0, stream->get()>>>(args, parts);
  CheckLaunch("AttendRows");
  if (parts.count == 1) return;
  MergeParts<Out><<<Blocks(args.rows * args.num_heads, 1), args.head_dim, 0,
                    stream->get()>>>(args, parts);
  CheckLaunch("MergeParts");
}

template <typename T, typename Kv, typename Out, int kDim>
void LaunchRows(const PagedAttentionArgs& args, Stream* stream) {
  LaunchWrite<T, Kv, kDim>(args, 0, stream);
  const int shared_heads = args.num_heads / args.num_kv_heads;
  if (shared_heads % 8 == 0) {
    LaunchAttend<T, Kv, Out, kDim, 8>(args, stream);
  } else if (shared_heads % 4 == 0) {
    LaunchAttend<T, Kv, Out, kDim, 4>(args, stream);
  } else if (shared_heads % 2 == 0) {
    LaunchAttend<T, Kv, Out, kDim, 2>(args, stream);
  } else {
    LaunchAttend<T, Kv, Out, kDim, 1>(args, stream);
  }
}

template <typename T, int kDim>
void Launch(const PagedAttentionArgs& args, Stream* stream) {
  const StepSegments& segments = args.segments;
  const bool kv_float = args.kv_dtype == DType::kFloat32;
  if (args.out_dtype == DType::kFloat32) {
    if (kv_float) {
      LaunchRows<T, float, float, kDim>(args, stream);
    } else {
      LaunchRows<T, BFloat16, float, kDim>(args, stream);
    }
    return;
  }
  RING_CHECK(!kv_float) << "fp32 pages with a bf16 result";
  if (segments.num_segments > segments.num_decode_segments) {
    LaunchWrite<T, BFloat16, kDim>(args, segments.num_decode_segments, stream);
    PagedPromptSegments(args, stream);
  }
  if (segments.num_decode_segments > 0) PagedDecodeSegments(args, stream);
}

}  // namespace

void PagedAttention(const PagedAttentionArgs& args, Stream* stream) {
  RING_CHECK_EQ(args.num_heads % args.num_kv_heads, 0);
  RING_CHECK(args.head_dim == 64 || args.head_dim == 128)
      << "head_dim " << args.head_dim;
  RING_CHECK_EQ(args.rope.half % 4, 0);
  if (args.rows == 0 || args.segments.num_segments == 0) return;
  WithFloatType(args.qkv_dtype, [&](auto type) {
    using T = decltype(type);
    if (args.head_dim == 64) {
      Launch<T, 64>(args, stream);
    } else {
      Launch<T, 128>(args, stream);
    }
  });
}

}  // namespace ring::cuda
