// Prompt segments over bf16 pages, on tensor cores.
//
//   o_a = softmax(q_a . k_c / sqrt(D), causal) v_c        c = a / (H / K)
//
// AttendTiles: a block of 4 warps owns one KV head and 128 queries: consecutive
// rows of a segment times the G heads that share the KV head, query n = row * G
// + head. It walks the segment's pages from the first to the one of its last
// row, one page a step, with the running maximum and sum of every query; warp w
// owns queries 32 w to 32 w + 31, 2 x 8 fragments of scores and 2 x D / 8 of
// outputs. The next page is on its way while a page is worked on. Blocks that
// see the most pages start first. Shared memory: the queries and two pages of
// keys and values in bf16, 96 KiB for D = 128, two blocks a multiprocessor; the
// 16-byte units of a row are swapped by its number, which keeps fragment loads
// free of bank conflicts. Bound: FLOP.
#include "kernels/cuda_stream.cuh"
#include "kernels/paged_attention/paged_kernels.cuh"
#include "kernels/tensor_core.cuh"

namespace ring::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kQueries = 128;     // of a block
constexpr int kWarpQueries = 32;  // of a warp
constexpr int kUnit = 8;          // elements of 16 bytes

template <int kDim>
struct Shared {
  BFloat16 q[kQueries * kDim];
  BFloat16 k[2][kPageTokens * kDim];
  BFloat16 v[2][kPageTokens * kDim];
};

// Index of an element of a matrix of rows of kDim in shared memory.
template <int kDim>
__device__ int Place(int row, int column) {
  return row * kDim + ((column / kUnit ^ row % 8) * kUnit) + column % kUnit;
}

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
      StoreFour(x[j], q + Place<kDim>(n, HeadColumn(j)));
    }
  }
}

// Starts the copies of one page; tokens from `tokens` on become zeros.
template <int kDim>
__device__ void CopyPage(const PagedAttentionArgs& args, int64_t page,
                         int kv_head, int tokens, BFloat16* k, BFloat16* v) {
  constexpr int kRowUnits = kDim / kUnit;
  const int64_t offset = PageOffset(args, page, kv_head);
  const BFloat16* const k_from =
      static_cast<const BFloat16*>(args.k_pages) + offset;
  const BFloat16* const v_from =
      static_cast<const BFloat16*>(args.v_pages) + offset;
#pragma unroll
  for (int i = 0; i < kPageTokens * kRowUnits / kThreads; ++i) {
    const int unit = i * kThreads + threadIdx.x;
    const int row = unit / kRowUnits;
    const int place = Place<kDim>(row, unit % kRowUnits * kUnit);
    CopyAsync(SharedAddress(k + place), k_from + unit * kUnit, row < tokens);
    CopyAsync(SharedAddress(v + place), v_from + unit * kUnit, row < tokens);
  }
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, 2)
    AttendTiles(PagedAttentionArgs args, int tile_rows) {
  constexpr int kRowTiles = kWarpQueries / 16;
  constexpr int kTokenTiles = kPageTokens / 8;
  constexpr int kColumnTiles = kDim / 8;
  extern __shared__ __align__(128) char memory[];
  auto* const shared = reinterpret_cast<Shared<kDim>*>(memory);
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
  const int pages = (length + kPageTokens - 1) / kPageTokens;
  const int32_t* const page_ids = PagesOf(args, tile.segment);
  const int heads = args.num_heads / args.num_kv_heads;
  const int lane = threadIdx.x % kWarp;
  const int first_query = threadIdx.x / kWarp * kWarpQueries;

  CopyPage<kDim>(args, page_ids[0], kv_head, length, shared->k[0],
                 shared->v[0]);
  CommitCopies();
  LoadQueries<T, kDim>(args, first_row, rows, kv_head, shared->q);

  // Of queries lane / 4 + 8 r of fragment m.
  int position[kRowTiles][2];
  float max_score[kRowTiles][2];
  float sum[kRowTiles][2] = {};
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int query = first_query + m * 16 + r * 8 + lane / 4;
      position[m][r] = first_position + query / heads;
      max_score[m][r] = -INFINITY;
    }
  }
  float o[kRowTiles][kColumnTiles][4] = {};

  int next_page = pages > 1 ? page_ids[1] : 0;
  for (int page = 0; page < pages; ++page) {
    WaitForCopies<0>();
    __syncthreads();
    if (page + 1 < pages) {
      CopyPage<kDim>(args, next_page, kv_head,
                     length - (page + 1) * kPageTokens,
                     shared->k[(page + 1) % 2], shared->v[(page + 1) % 2]);
      CommitCopies();
      if (page + 2 < pages) next_page = page_ids[page + 2];
    }
    const BFloat16* const k = shared->k[page % 2];
    const BFloat16* const v = shared->v[page % 2];

    float score[kRowTiles][kTokenTiles][4] = {};
#pragma unroll
    for (int d = 0; d < kDim; d += 16) {
      uint32_t q[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        LoadMatrices(SharedAddress(shared->q +
                                   Place<kDim>(first_query + m * 16 + lane % 16,
                                               d + lane / 16 * 8)),
                     q[m]);
      }
#pragma unroll
      for (int t = 0; t < kTokenTiles; t += 2) {
        uint32_t key[4];
        LoadMatrices(
            SharedAddress(k + Place<kDim>(t * 8 + lane / 16 * 8 + lane % 8,
                                          d + lane / 8 % 2 * 8)),
            key);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          MultiplyAdd(q[m], key[0], key[1], score[m][t]);
          MultiplyAdd(q[m], key[2], key[3], score[m][t + 1]);
        }
      }
    }

    if ((page + 1) * kPageTokens - 1 > first_position) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int token = page * kPageTokens + t * 8 + lane % 4 * 2 + e % 2;
            if (token > position[m][e / 2]) score[m][t][e] = -INFINITY;
          }
        }
      }
    }

#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float top = max_score[m][r];
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
          top = fmaxf(top, fmaxf(score[m][t][2 * r], score[m][t][2 * r + 1]));
        }
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
        const float rescale = Exp2(max_score[m][r] - top);
        max_score[m][r] = top;
        sum[m][r] *= rescale;
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) {
          o[m][c][2 * r] *= rescale;
          o[m][c][2 * r + 1] *= rescale;
        }
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
          for (int e = 2 * r; e < 2 * r + 2; ++e) {
            score[m][t][e] = Exp2(score[m][t][e] - top);
            sum[m][r] += score[m][t][e];
          }
        }
      }
    }

#pragma unroll
    for (int t = 0; t < kTokenTiles; t += 2) {
      uint32_t weight[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const float(&low)[4] = score[m][t];
        const float(&high)[4] = score[m][t + 1];
        weight[m][0] = PackBf16(low[0], low[1]);
        weight[m][1] = PackBf16(low[2], low[3]);
        weight[m][2] = PackBf16(high[0], high[1]);
        weight[m][3] = PackBf16(high[2], high[3]);
      }
#pragma unroll
      for (int c = 0; c < kColumnTiles; c += 2) {
        uint32_t value[4];
        LoadMatricesTransposed(
            SharedAddress(v + Place<kDim>(t * 8 + lane / 16 * 8 + lane % 8,
                                          c * 8 + lane / 8 % 2 * 8)),
            value);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          MultiplyAdd(weight[m], value[0], value[2], o[m][c]);
          MultiplyAdd(weight[m], value[1], value[3], o[m][c + 1]);
        }
      }
    }
  }

#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float total = sum[m][r];
      total += __shfl_xor_sync(kAllLanes, total, 1);
      total += __shfl_xor_sync(kAllLanes, total, 2);
      const int query = first_query + m * 16 + r * 8 + lane / 4;
      const int row = query / heads;
      if (row >= rows) continue;
      const float scale = 1.0f / total;
      BFloat16* const out = static_cast<BFloat16*>(args.out) +
                            ((first_row + row) * args.num_heads +
                             kv_head * heads + query % heads) *
                                kDim +
                            lane % 4 * 2;
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        *reinterpret_cast<uint32_t*>(out + c * 8) =
            PackBf16(o[m][c][2 * r] * scale, o[m][c][2 * r + 1] * scale);
      }
    }
  }
}

template <typename T, int kDim>
void Launch(const PagedAttentionArgs& args, Stream* stream) {
  constexpr int kBytes = sizeof(Shared<kDim>);
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
