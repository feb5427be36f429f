// Decode segments over bf16 pages: norms, rotation, the new entries of the
// pages, and attention split over parts of the context.
//
//   o_a = softmax(q_a . k_c / sqrt(D)) v_c                c = a / (H / K)
//
// AttendParts: a block of 4 warps takes parts blockIdx.x, + gridDim.x, ... of
// one segment's context, for up to 8 query heads that share a KV head. A warp
// takes steps of 16 tokens straight from memory to fragments of mma.m16n8k16,
// heads in the place of columns:
//   scores^T [tokens, heads]  = K [tokens, D] Q^T
//   o^T [D, heads]           += V^T [D, tokens] weights^T
// Which element of D a fragment's row or column stands for is free, so every
// lane loads 16 bytes in a row: of K the units (lane % 4) + 4 j of tokens lane
// / 4 and + 8, of V the units lane / 4 + 8 h of tokens 2 (lane % 4) + 0, 1,
// 8, 9. The new token's key and value are written by the blocks that read them.
// Every warp keeps its own running maximum, sum and output; the warps are
// merged in shared memory, the parts by MergeParts, in an order that depends on
// the length of the context alone. Shared memory: 4 * 8 * D floats and a few
// more, 19 KiB. Bound: memory, every page read once.
#include <algorithm>

#include "kernels/cuda_stream.cuh"
#include "kernels/paged_attention/paged_kernels.cuh"
#include "kernels/tensor_core.cuh"

namespace ring::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kHeads = 8;        // of a block
constexpr int kStepTokens = 16;  // of a warp
constexpr int kTiles = kStepTokens / 16;
constexpr int kMostParts = 96;      // of a context
constexpr int kLeastPartPages = 4;  // a shorter part costs more than it gives
constexpr int kBlocks = 4096;       // enough to keep every multiprocessor busy
constexpr float kLowest = -1e30f;   // a maximum before the first score

// The unfinished results of queries: maximum, sum and output before the
// division. Index [query, part] with query = row * H + head.
struct Parts {
  int most = 1;      // parts of one context
  int64_t rows = 0;  // later rows have one part
  float* max = nullptr;
  float* sum = nullptr;
  float* o = nullptr;  // [query, part, D]
};

// How the context of one row is cut; from its length alone.
struct Cut {
  int part_pages;
  int count;
};
__device__ Cut CutContext(const Parts& parts, int64_t row, int length) {
  const int most = row < parts.rows ? parts.most : 1;
  const int pages = (length + kPageTokens - 1) / kPageTokens;
  const int part_pages = max(kLeastPartPages, (pages + most - 1) / most);
  if (most == 1) return {pages, 1};
  return {part_pages, (pages + part_pages - 1) / part_pages};
}

// Warps 0 and 1: the block's queries to shared memory, zeros for missing heads.
template <typename T, int kDim>
__device__ void LoadQueries(const PagedAttentionArgs& args, int64_t row,
                            int first_head, int heads,
                            BFloat16 (&q)[kHeads][kDim]) {
  constexpr int kParts = kDim / 32;
  const int head = threadIdx.x / kHeadLanes;
  const int half = args.rope.half;
  const bool real = head < heads;
  const T* const from = static_cast<const T*>(args.qkv) + row * QkvWidth(args) +
                        int64_t{first_head + (real ? head : 0)} * kDim;
  float x[kParts][4];
  LoadHeadPart(from, x);
  NormAndRotatePart(from, args.q_norm, args.eps, args.rope.cos + row * half,
                    args.rope.sin + row * half, half, false, x);
  const float scale = real ? QueryScale(kDim) : 0.0f;
#pragma unroll
  for (int j = 0; j < kParts; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) x[j][e] *= scale;
    StoreFour(x[j], &q[head][HeadColumn(j)]);
  }
}

// Warp 2: key and value of one row to the pages.
template <typename T, int kDim>
__device__ void WriteEntry(const PagedAttentionArgs& args, int64_t row,
                           int64_t page, int token, int kv_head) {
  constexpr int kParts = kDim / 32;
  const int half = args.rope.half;
  const T* const k_from = static_cast<const T*>(args.qkv) +
                          row * QkvWidth(args) +
                          int64_t{args.num_heads + kv_head} * kDim;
  const T* const v_from = k_from + int64_t{args.num_kv_heads} * kDim;
  float k[kParts][4], v[kParts][4];
  LoadHeadPart(k_from, k);
  LoadHeadPart(v_from, v);
  NormAndRotatePart(k_from, args.k_norm, args.eps, args.rope.cos + row * half,
                    args.rope.sin + row * half, half, false, k);
  if (threadIdx.x % kWarp >= kHeadLanes) return;
  const int64_t to = PageOffset(args, page, kv_head) + token * kDim;
#pragma unroll
  for (int j = 0; j < kParts; ++j) {
    const int64_t at = to + HeadColumn(j);
    StoreFour(k[j], static_cast<BFloat16*>(args.k_pages) + at);
    StoreFour(v[j], static_cast<BFloat16*>(args.v_pages) + at);
  }
}

__device__ inline uint32_t LowHalves(uint32_t first, uint32_t second) {
  return __byte_perm(first, second, 0x5410);
}
__device__ inline uint32_t HighHalves(uint32_t first, uint32_t second) {
  return __byte_perm(first, second, 0x7632);
}
// The 8 x 8 matrix of bf16 with rows and columns exchanged.
__device__ inline uint32_t Transpose(uint32_t m) {
  uint32_t t;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;"
               : "=r"(t)
               : "r"(m));
  return t;
}

// What a warp has seen: the maximum and this lane's part of the sum for heads
// 2 (lane % 4) + 0, 1, and the lane's part of the output, fragment i = 4 h + w:
// o[i] is elements 8 (lane / 4 + 8 h) + 2 w + 0, 0, 1, 1 of heads + 0, 1, 0, 1.
template <int kDim>
struct Seen {
  float max[2] = {kLowest, kLowest};
  float sum[2] = {};
  float o[kDim / 16][4] = {};
};

// Takes in one step of tokens, of which `tokens` count. q are the lane's units
// of the query of head lane / 4.
template <int kDim>
__device__ void TakeStep(const BFloat16* k_from, const BFloat16* v_from,
                         int tokens, const uint4 (&q)[kDim / 32],
                         Seen<kDim>* seen) {
  constexpr int kUnits = kDim / 32;
  constexpr int kHalves = kDim / 64;
  const int g = threadIdx.x % kWarp / 4;
  const int c = threadIdx.x % 4;
  uint4 k[kTiles][2][kUnits];
  uint4 v[kTiles][4][kHalves];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int token = t * 16 + r * 8 + g;
#pragma unroll
      for (int j = 0; j < kUnits; ++j) {
        k[t][r][j] = token < tokens
                         ? *reinterpret_cast<const uint4*>(
                               k_from + token * kDim + (c + 4 * j) * 8)
                         : uint4{};
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int token = t * 16 + c * 2 + r % 2 + r / 2 * 8;
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        // What lies behind the context was never written by this sequence.
        v[t][r][h] = token < tokens
                         ? *reinterpret_cast<const uint4*>(
                               v_from + token * kDim + (g + 8 * h) * 8)
                         : uint4{};
      }
    }
  }

  float score[kTiles][4] = {};
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int j = 0; j < kUnits; ++j) {
      const uint4& low = k[t][0][j];
      const uint4& high = k[t][1][j];
      const uint32_t first[4] = {low.x, high.x, low.y, high.y};
      const uint32_t second[4] = {low.z, high.z, low.w, high.w};
      MultiplyAdd(first, q[j].x, q[j].y, score[t]);
      MultiplyAdd(second, q[j].z, q[j].w, score[t]);
    }
  }
  float top[2] = {seen->max[0], seen->max[1]};
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (t * 16 + g + e / 2 * 8 >= tokens) score[t][e] = -INFINITY;
      top[e % 2] = fmaxf(top[e % 2], score[t][e]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int offset = 4; offset < kWarp; offset *= 2) {
      top[i] = fmaxf(top[i], __shfl_xor_sync(kAllLanes, top[i], offset));
    }
  }
  if (__any_sync(kAllLanes, top[0] > seen->max[0] || top[1] > seen->max[1])) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float rescale = Exp2(seen->max[i] - top[i]);
      seen->max[i] = top[i];
      seen->sum[i] *= rescale;
#pragma unroll
      for (int d = 0; d < kDim / 16; ++d) {
        seen->o[d][i] *= rescale;
        seen->o[d][i + 2] *= rescale;
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      score[t][e] = Exp2(score[t][e] - seen->max[e % 2]);
      seen->sum[e % 2] += score[t][e];
    }
    const uint32_t low = Transpose(PackBf16(score[t][0], score[t][1]));
    const uint32_t high = Transpose(PackBf16(score[t][2], score[t][3]));
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      const uint4& a = v[t][0][h];
      const uint4& b = v[t][1][h];
      const uint4& x = v[t][2][h];
      const uint4& y = v[t][3][h];
      const uint32_t rows[4][4] = {{a.x, b.x, x.x, y.x},
                                   {a.y, b.y, x.y, y.y},
                                   {a.z, b.z, x.z, y.z},
                                   {a.w, b.w, x.w, y.w}};
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const uint32_t value[4] = {LowHalves(rows[w][0], rows[w][1]),
                                   HighHalves(rows[w][0], rows[w][1]),
                                   LowHalves(rows[w][2], rows[w][3]),
                                   HighHalves(rows[w][2], rows[w][3])};
        MultiplyAdd(value, low, high, seen->o[h * 4 + w]);
      }
    }
  }
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kWarps* kWarp, 4)
    AttendParts(PagedAttentionArgs args, Parts parts) {
  constexpr int kUnits = kDim / 32;
  __shared__ __align__(16) BFloat16 q_shared[kHeads][kDim];
  __shared__ float max_shared[kWarps][kHeads];
  __shared__ float sum_shared[kWarps][kHeads];
  __shared__ __align__(16) float o_shared[kWarps][kHeads][kDim];
  cudaTriggerProgrammaticLaunchCompletion();
  const StepSegments& s = args.segments;
  const int segment = blockIdx.z;
  const int group = args.num_heads / args.num_kv_heads;
  const int blocks_of_group = (group + kHeads - 1) / kHeads;
  const int kv_head = blockIdx.y / blocks_of_group;
  const int group_head = blockIdx.y % blocks_of_group * kHeads;
  const int first_head = kv_head * group + group_head;
  const int heads = min(kHeads, group - group_head);
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int row_count = s.row_count[segment];
  const int position = s.position[segment];
  const int32_t* const pages = PagesOf(args, segment);
  for (int i = 0; i < row_count; ++i) {
    const int64_t row = s.row_begin[segment] + int64_t{i};
    const int length = position + i + 1;
    const Cut cut = CutContext(parts, row, length);
    if (static_cast<int>(blockIdx.x) >= cut.count) continue;
    const int part_tokens = cut.part_pages * kPageTokens;
    if (warp < 2) LoadQueries<T, kDim>(args, row, first_head, heads, q_shared);
    __syncthreads();
    uint4 q[kUnits];
#pragma unroll
    for (int j = 0; j < kUnits; ++j) {
      q[j] = *reinterpret_cast<const uint4*>(
          &q_shared[lane / 4][(lane % 4 + 4 * j) * 8]);
    }

    for (int part = blockIdx.x; part < cut.count; part += gridDim.x) {
      const int begin = part * part_tokens;
      const int end = min(begin + part_tokens, length);
      if (end > position) {
        // Rows of this step that the part covers.
        if (warp == 2) {
          for (int r = max(begin - position, 0); r <= end - 1 - position; ++r) {
            const int token = position + r;
            WriteEntry<T, kDim>(args, s.row_begin[segment] + int64_t{r},
                                pages[token / kPageTokens], token % kPageTokens,
                                kv_head);
          }
        }
        __syncthreads();
      }

      Seen<kDim> seen;
      for (int first = begin + warp * kStepTokens; first < end;
           first += kWarps * kStepTokens) {
        const int64_t from =
            PageOffset(args, pages[first / kPageTokens], kv_head) +
            first % kPageTokens * kDim;
        TakeStep<kDim>(static_cast<const BFloat16*>(args.k_pages) + from,
                       static_cast<const BFloat16*>(args.v_pages) + from,
                       end - first, q, &seen);
      }

#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int offset = 4; offset < kWarp; offset *= 2) {
          seen.sum[n] += __shfl_xor_sync(kAllLanes, seen.sum[n], offset);
        }
        const int head = lane % 4 * 2 + n;
        if (lane < 4) {
          max_shared[warp][head] = seen.max[n];
          sum_shared[warp][head] = seen.sum[n];
        }
#pragma unroll
        for (int d = 0; d < kDim / 16; ++d) {
          *reinterpret_cast<float2*>(
              &o_shared[warp][head][(lane / 4 + d / 4 * 8) * 8 + d % 4 * 2]) =
              float2{seen.o[d][n], seen.o[d][n + 2]};
        }
      }
      __syncthreads();
      for (int n = threadIdx.x; n < heads * kDim; n += kWarps * kWarp) {
        const int head = n / kDim;
        const int d = n % kDim;
        float top = max_shared[0][head];
#pragma unroll
        for (int w = 1; w < kWarps; ++w) top = fmaxf(top, max_shared[w][head]);
        float total = 0;
        float value = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
          const float factor = Exp2(max_shared[w][head] - top);
          total += factor * sum_shared[w][head];
          value += factor * o_shared[w][head][d];
        }
        const int64_t query = row * args.num_heads + first_head + head;
        if (cut.count == 1) {
          static_cast<BFloat16*>(args.out)[query * kDim + d] =
              Narrow<BFloat16>(value / total);
          continue;
        }
        const int64_t slot = query * parts.most + part;
        parts.o[slot * kDim + d] = value;
        if (d == 0) {
          parts.max[slot] = top;
          parts.sum[slot] = total;
        }
      }
      __syncthreads();
    }
  }
}

// A block of D / 4 threads times 4 owns one query: threads of equal y take
// every fourth part, x four elements each.
template <int kDim>
__global__ void __launch_bounds__(kDim)
    MergeParts(PagedAttentionArgs args, Parts parts) {
  constexpr int kLines = 4;
  __shared__ __align__(16) float o_shared[kLines][kDim];
  __shared__ float sum_shared[kLines];
  // Also where there is nothing to do: the next kernel waits for this one
  // alone.
  cudaGridDependencySynchronize();
  const StepSegments& s = args.segments;
  const int64_t row = blockIdx.x / args.num_heads;
  const int segment = SegmentOfRow(s, row);
  if (segment < 0 || segment >= s.num_decode_segments) return;
  const int length =
      s.position[segment] + static_cast<int>(row) - s.row_begin[segment] + 1;
  const int count = CutContext(parts, row, length).count;
  if (count == 1) return;
  const int line = threadIdx.x / (kDim / 4);
  const int d = threadIdx.x % (kDim / 4) * 4;
  const int64_t first = int64_t{blockIdx.x} * parts.most;
  float top = kLowest;
  for (int p = 0; p < count; ++p) top = fmaxf(top, parts.max[first + p]);
  float total = 0;
  float value[4] = {};
#pragma unroll 4
  for (int p = line; p < count; p += kLines) {
    const float factor = Exp2(parts.max[first + p] - top);
    total += factor * parts.sum[first + p];
    float o[4];
    LoadFour(parts.o + (first + p) * kDim + d, o);
#pragma unroll
    for (int e = 0; e < 4; ++e) value[e] += factor * o[e];
  }
  StoreFour(value, &o_shared[line][d]);
  if (d == 0) sum_shared[line] = total;
  __syncthreads();
  total = 0;
  float result = 0;
#pragma unroll
  for (int l = 0; l < kLines; ++l) {
    total += sum_shared[l];
    result += o_shared[l][threadIdx.x];
  }
  static_cast<BFloat16*>(args.out)[int64_t{blockIdx.x} * kDim + threadIdx.x] =
      Narrow<BFloat16>(result / total);
}

// Room for as many parts as the scratch area takes. Decode segments have one
// row, as a rule: further rows get one part each.
Parts PartsOf(const PagedAttentionArgs& args, Stream* stream) {
  Parts parts;
  parts.rows = std::min<int64_t>(args.segments.num_decode_segments, args.rows);
  const int64_t part_bytes = parts.rows * args.num_heads * (args.head_dim + 2) *
                             static_cast<int64_t>(sizeof(float));
  parts.most = static_cast<int>(
      std::min<int64_t>(kMostParts, stream->scratch_bytes() / part_bytes));
  RING_CHECK_GE(parts.most, 1);
  const int64_t slots = parts.rows * args.num_heads * parts.most;
  parts.o = stream->Scratch<float>(slots * (args.head_dim + 2));
  parts.max = parts.o + slots * args.head_dim;
  parts.sum = parts.max + slots;
  return parts;
}

template <typename T, int kDim>
void Launch(const PagedAttentionArgs& args, Stream* stream) {
  const Parts parts = PartsOf(args, stream);
  const int group = args.num_heads / args.num_kv_heads;
  const int blocks = args.num_kv_heads * ((group + kHeads - 1) / kHeads);
  const int segments = args.segments.num_decode_segments;
  RING_CHECK_LE(segments, 65535);
  const int splits = std::clamp(kBlocks / (blocks * segments), 1, parts.most);
  const dim3 grid(static_cast<unsigned>(splits), static_cast<unsigned>(blocks),
                  static_cast<unsigned>(segments));
  AttendParts<T, kDim><<<grid, kWarps * kWarp, 0, stream->get()>>>(args, parts);
  CheckLaunch("AttendParts");
  LaunchDependent(MergeParts<kDim>,
                  dim3(Blocks(parts.rows * args.num_heads, 1)), dim3(kDim), 0,
                  stream, args, parts);
}

}  // namespace

void PagedDecodeSegments(const PagedAttentionArgs& args, Stream* stream) {
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
