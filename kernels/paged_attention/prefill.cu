// Prompt segments over bf16 pages, on tensor cores.
//
//   o_a = softmax(q_a . k_c / sqrt(D), causal) v_c        c = a / (H / K)
//
// AttendTiles: a block of 2 warpgroups owns one KV head and 128 queries:
// consecutive rows of a segment times the G heads that share the KV head, query
// n = row * G + head. It walks the segment's pages from the first to the one of
// its last row, two pages a step, with the running maximum and sum of every
// query. Warpgroup w owns queries 64 w to 64 w + 63: their scores and outputs
// are accumulators of wgmma.m64n128k16 and m64nDk16, the queries and the
// weights its left factors in registers. The scores of the next step are
// computed while the weights of this one multiply its values; the pages after
// are on their way. Blocks that see the most pages start first. Shared memory:
// the queries and two steps of keys and values in bf16, in slabs, 161 KiB for D
// = 128. Bound: FLOP.
#include "kernels/cuda_stream.cuh"
#include "kernels/paged_attention/paged_kernels.cuh"
#include "kernels/warpgroup.cuh"

namespace ring::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kQueries = 128;     // of a block
constexpr int kWarpQueries = 16;  // of a warp
constexpr int kStages = 2;
constexpr int kStepPages = 2;
constexpr int kStepTokens = kStepPages * kPageTokens;
constexpr int kUnit = 8;  // elements of 16 bytes
constexpr int kSlabBytes = kStepTokens * kSlabRowBytes;
constexpr int kTokenTiles = kStepTokens / 8;

template <int kDim>
struct Shared {
  BFloat16 k[kStages][kStepTokens * kDim];
  BFloat16 v[kStages][kStepTokens * kDim];
  BFloat16 q[kQueries * kDim];
};

// Queries of the warp: normed, rotated, scaled, zero where there is none.
template <typename T, int kDim>
__device__ void LoadQueries(const PagedAttentionArgs& args, int64_t first_row,
                            int rows, int kv_head, BFloat16* q) {
  constexpr int kParts = kDim / 32;
  const int lane = threadIdx.x % kWarp;
  const int heads = args.num_heads / args.num_kv_heads;
  const int half = args.rope.half;
  const int begin = threadIdx.x / kWarp * kWarpQueries;
#pragma unroll 2
  for (int n = begin + lane / kHeadLanes; n < begin + kWarpQueries;
       n += kWarp / kHeadLanes) {
    const bool real = n / heads < rows;
    const int64_t row = first_row + (real ? n / heads : 0);
    const T* const from = static_cast<const T*>(args.qkv) +
                          row * QkvWidth(args) +
                          int64_t{kv_head * heads + n % heads} * kDim;
    float x[kParts][4];
    LoadHeadPart(from, x);
    NormAndRotatePart(from, args.q_norm, args.eps, args.rope.cos + row * half,
                      args.rope.sin + row * half, half, false, x);
    const float scale = real ? QueryScale(kDim) : 0.0f;
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) x[j][e] *= scale;
      StoreFour(x[j], q + SlabIndex(kQueries, n, HeadColumn(j)));
    }
  }
}

// Starts the copies of the keys or values of one step, of which `tokens` count;
// the others become zeros.
template <int kDim>
__device__ void CopyStep(const PagedAttentionArgs& args, const void* pages,
                         const int32_t* page_ids, int tokens, int kv_head,
                         BFloat16* to) {
  constexpr int kRowUnits = kDim / kUnit;
#pragma unroll
  for (int page = 0; page < kStepPages; ++page) {
    const int left = tokens - page * kPageTokens;
    const BFloat16* const from =
        static_cast<const BFloat16*>(pages) +
        PageOffset(args, page_ids[left > 0 ? page : 0], kv_head);
#pragma unroll
    for (int i = 0; i < kPageTokens * kRowUnits / kThreads; ++i) {
      const int unit = i * kThreads + threadIdx.x;
      const int row = unit / kRowUnits;
      const int place = SlabIndex(kStepTokens, page * kPageTokens + row,
                                  unit % kRowUnits * kUnit);
      CopyAsync(SharedAddress(to + place), from + unit * kUnit, row < left);
    }
  }
}

// The running softmax of the two queries of a lane, lane / 4 and + 8 of the
// warp's 16.
struct Running {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};  // of this lane's tokens
  float rescale[2];   // what the last page does to earlier sums
};

// Turns the scores of a page into weights.
__device__ inline void TakeScores(float (&score)[kStepTokens / 2],
                                  Running* running) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float top = running->max[r];
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      top = fmaxf(top, fmaxf(score[4 * t + 2 * r], score[4 * t + 2 * r + 1]));
    }
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
    running->rescale[r] = Exp2(running->max[r] - top);
    running->max[r] = top;
    float sum = 0;
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int e = 4 * t + 2 * r; e < 4 * t + 2 * r + 2; ++e) {
        score[e] = Exp2(score[e] - top);
        sum += score[e];
      }
    }
    running->sum[r] = running->sum[r] * running->rescale[r] + sum;
  }
}

// Weights as left factors of 16 tokens each.
__device__ inline void PackWeights(const float (&weight)[kStepTokens / 2],
                                   uint32_t (&packed)[kStepTokens / 16][4]) {
#pragma unroll
  for (int t = 0; t < kStepTokens / 16; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      packed[t][i] = PackBf16(weight[8 * t + 2 * i], weight[8 * t + 2 * i + 1]);
    }
  }
}

// score = Q K^T, under way on return.
template <int kDim>
__device__ void StartScores(const uint32_t (&q)[kDim / 16][4],
                            const BFloat16* k,
                            float (&score)[kStepTokens / 2]) {
  const uint32_t address = SharedAddress(k);
  FenceGroup();
#pragma unroll
  for (int d = 0; d < kDim / 16; ++d) {
    MultiplyGroup<false>(
        q[d], DescribeSlab(address + d / 4 * kSlabBytes + d % 4 * 32), d > 0,
        score);
  }
  CommitGroup();
}

// o += weight V, under way on return.
template <int kDim>
__device__ void StartOutputs(const uint32_t (&weight)[kStepTokens / 16][4],
                             const BFloat16* v, float (&o)[kDim / 2]) {
  const uint32_t address = SharedAddress(v);
  FenceGroup();
#pragma unroll
  for (int t = 0; t < kStepTokens / 16; ++t) {
    MultiplyGroup<true>(
        weight[t], DescribeSlab(address + t * 2 * kSlabAlignment, kSlabBytes),
        true, o);
  }
  CommitGroup();
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    AttendTiles(PagedAttentionArgs args, int tile_rows) {
  extern __shared__ char memory[];
  auto* const shared = reinterpret_cast<Shared<kDim>*>(
      memory + (kSlabAlignment - SharedAddress(memory) % kSlabAlignment) %
                   kSlabAlignment);
  const StepSegments& s = args.segments;
  const int kv_head = blockIdx.x;
  const PromptTile tile =
      FindPromptTile(s, tile_rows, gridDim.y - 1 - blockIdx.y);
  if (tile.segment < 0) return;
  const int first = tile.number * tile_rows;  // row within the segment
  const int rows = min(tile_rows, s.row_count[tile.segment] - first);
  const int64_t first_row = s.row_begin[tile.segment] + int64_t{first};
  const int first_position = s.position[tile.segment] + first;
  const int length = first_position + rows;
  const int steps = (length + kStepTokens - 1) / kStepTokens;
  const int32_t* const page_ids = PagesOf(args, tile.segment);
  const int heads = args.num_heads / args.num_kv_heads;
  const int lane = threadIdx.x % kWarp;
  const int first_query = threadIdx.x / kWarp * kWarpQueries;

  // Group of copies j holds the keys of step j and the values of step j - 1.
  const auto copy_group = [&](int j) {
    if (j < steps) {
      CopyStep<kDim>(args, args.k_pages, page_ids + j * kStepPages,
                     length - j * kStepTokens, kv_head, shared->k[j % kStages]);
    }
    if (j > 0 && j <= steps) {
      CopyStep<kDim>(args, args.v_pages, page_ids + (j - 1) * kStepPages,
                     length - (j - 1) * kStepTokens, kv_head,
                     shared->v[(j - 1) % kStages]);
    }
    CommitCopies();
  };
  copy_group(0);
  copy_group(1);
  LoadQueries<T, kDim>(args, first_row, rows, kv_head, shared->q);
  __syncwarp();
  uint32_t q[kDim / 16][4];
#pragma unroll
  for (int d = 0; d < kDim / 16; ++d) {
    LoadMatrices(
        SharedAddress(shared->q + SlabIndex(kQueries, first_query + lane % 16,
                                            d * 16 + lane / 16 * 8)),
        q[d]);
  }
  WaitForCopies<1>();
  FenceShared();
  __syncthreads();

  int position[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    position[r] = first_position + (first_query + r * 8 + lane / 4) / heads;
  }
  const auto hide = [&](int step, float(&score)[kStepTokens / 2]) {
    if ((step + 1) * kStepTokens - 1 <= first_position) return;
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int token = step * kStepTokens + t * 8 + lane % 4 * 2 + e % 2;
        if (token > position[e / 2]) score[4 * t + e] = -INFINITY;
      }
    }
  };

  Running running;
  float score[kStepTokens / 2];
  float o[kDim / 2];
  uint32_t weight[kStepTokens / 16][4];
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) o[i] = 0;
  StartScores<kDim>(q, shared->k[0], score);
  WaitForGroups<0>(score);
  hide(0, score);
  TakeScores(score, &running);
  PackWeights(score, weight);
  for (int step = 0; step < steps - 1; ++step) {
    WaitForCopies<0>();
    FenceShared();
    __syncthreads();
    copy_group(step + 2);
    StartScores<kDim>(q, shared->k[(step + 1) % kStages], score);
    StartOutputs<kDim>(weight, shared->v[step % kStages], o);
    WaitForGroups<1>(score);
    hide(step + 1, score);
    TakeScores(score, &running);
    WaitForGroups<0>(o);
    if (__any_sync(kAllLanes,
                   running.rescale[0] < 1.0f || running.rescale[1] < 1.0f)) {
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) o[i] *= running.rescale[i / 2 % 2];
    }
    PackWeights(score, weight);
  }
  WaitForCopies<0>();
  FenceShared();
  __syncthreads();
  StartOutputs<kDim>(weight, shared->v[(steps - 1) % kStages], o);
  WaitForGroups<0>(o);

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float total = running.sum[r];
    total += __shfl_xor_sync(kAllLanes, total, 1);
    total += __shfl_xor_sync(kAllLanes, total, 2);
    const int query = first_query + r * 8 + lane / 4;
    const int row = query / heads;
    if (row >= rows) continue;
    const float scale = 1.0f / total;
    BFloat16* const out =
        static_cast<BFloat16*>(args.out) +
        ((first_row + row) * args.num_heads + kv_head * heads + query % heads) *
            kDim +
        lane % 4 * 2;
#pragma unroll
    for (int c = 0; c < kDim / 8; ++c) {
      *reinterpret_cast<uint32_t*>(out + c * 8) =
          PackBf16(o[4 * c + 2 * r] * scale, o[4 * c + 2 * r + 1] * scale);
    }
  }
}

template <typename T, int kDim>
void Launch(const PagedAttentionArgs& args, Stream* stream) {
  constexpr int kBytes = sizeof(Shared<kDim>) + kSlabAlignment;
  const auto kernel = AttendTiles<T, kDim>;
  RING_CUDA_CHECK(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const int heads = args.num_heads / args.num_kv_heads;
  RING_CHECK_LE(heads, kQueries);
  const int tile_rows = kQueries / heads;
  const int64_t tiles = MaxPromptTiles(args.segments, args.rows, tile_rows);
  RING_CHECK_LE(tiles, int64_t{65535});
  const dim3 grid(static_cast<unsigned>(args.num_kv_heads),
                  static_cast<unsigned>(tiles));
  kernel<<<grid, kThreads, kBytes, stream->get()>>>(args, tile_rows);
  CheckLaunch("AttendTiles");
}

}  // namespace

void PagedPromptSegments(const PagedAttentionArgs& args, Stream* stream) {
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
