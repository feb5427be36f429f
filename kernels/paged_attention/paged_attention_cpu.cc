// First every row's k and v go to the pages, then the work is split over
// (segment, KV head, tile of query rows). A tile holds all query heads that
// read the KV head, so a page is unpacked once for all of them; scores and
// outputs are matrix products in cache, the softmax runs along the pages.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/thread_pool.h"
#include "kernels/elementwise/row_math.h"
#include "kernels/paged_attention/paged_attention.h"
#include "kernels/simd/small_gemm.h"
#include "kernels/simd/vec.h"

namespace ring::cpu {
namespace {

// Query rows of a tile.
constexpr int kTileRows = 32;

// A row of a segment.
struct RowRef {
  int64_t row;
  int segment;
  int64_t position;  // in the sequence
};

std::vector<RowRef> RowsOfSegments(const StepSegments& segments) {
  std::vector<RowRef> rows;
  for (int s = 0; s < segments.num_segments; ++s) {
    for (int i = 0; i < segments.row_count[s]; ++i) {
      rows.push_back({int64_t{segments.row_begin[s]} + i, s,
                      int64_t{segments.position[s]} + i});
    }
  }
  return rows;
}

// Where the KV head's entry of `position` starts, in elements.
int64_t KvOffset(const PagedAttentionArgs& args, int segment, int64_t position,
                 int kv_head) {
  const StepSegments& s = args.segments;
  const int64_t page = s.page_table[s.page_row[segment] * s.page_stride +
                                    position / kPageTokens];
  return ((page * args.num_kv_heads + kv_head) * kPageTokens +
          position % kPageTokens) *
         args.head_dim;
}

int64_t QkvWidth(const PagedAttentionArgs& args) {
  return int64_t{args.num_heads + 2 * args.num_kv_heads} * args.head_dim;
}

// Writes k and v of one row. `buffer` has room for head_dim values.
void WriteKv(const PagedAttentionArgs& args, const RowRef& ref, float* buffer) {
  const int dim = args.head_dim;
  const int half = args.rope.half;
  const int64_t k_begin =
      ref.row * QkvWidth(args) + int64_t{args.num_heads} * dim;
  const int64_t v_begin = k_begin + int64_t{args.num_kv_heads} * dim;
  for (int head = 0; head < args.num_kv_heads; ++head) {
    const int64_t to = KvOffset(args, ref.segment, ref.position, head);
    LoadRow(args.qkv, args.qkv_dtype, k_begin + head * dim, dim, buffer);
    NormAndRotateHead(buffer, dim, args.k_norm, args.eps,
                      args.rope.cos + ref.row * half,
                      args.rope.sin + ref.row * half, half);
    StoreRow(buffer, dim, args.kv_dtype, to, args.k_pages);
    LoadRow(args.qkv, args.qkv_dtype, v_begin + head * dim, dim, buffer);
    StoreRow(buffer, dim, args.kv_dtype, to, args.v_pages);
  }
}

// Scores of one query against the keys of one page -> weights relative to the
// running maximum: max = max(max, scores); scores = exp(scores - max).
// Returns in `rescale` what the sums so far must be multiplied with.
struct SoftmaxUpdate {
  float* scores = nullptr;  // [count], then zeros up to kPageTokens
  int count = 0;            // >= 1
  float* max = nullptr;
  float* sum = nullptr;  // of the weights so far
  float* rescale = nullptr;
};

struct SoftmaxUpdateKernel {
  template <int kLanes>
  RING_INLINE static void Run(const SoftmaxUpdate* update) {
    using Vec = simd::FloatVec<kLanes>;
    const SoftmaxUpdate& u = *update;
    float max = *u.max;
    for (int j = 0; j < u.count; ++j) {
      max = u.scores[j] > max ? u.scores[j] : max;
    }
    for (int j = u.count; j < kPageTokens; ++j) {
      u.scores[j] = -std::numeric_limits<float>::infinity();
    }
    Vec sum = {};
    for (int j = 0; j < kPageTokens; j += kLanes) {
      Vec x;
      simd::Load<kLanes>(u.scores + j, x);
      x -= max;
      simd::Exp<kLanes>(x);
      sum += x;
      simd::Store<kLanes>(x, u.scores + j);
    }
    *u.rescale = std::exp(*u.max - max);
    *u.sum = *u.sum * *u.rescale + simd::Sum<kLanes>(sum);
    *u.max = max;
  }
};

// Query rows [first, first + count) of a segment and one KV head.
struct Tile {
  int segment;
  int kv_head;
  int first;
  int count;
};

std::vector<Tile> MakeTiles(const PagedAttentionArgs& args) {
  const StepSegments& segments = args.segments;
  std::vector<Tile> tiles;
  // The last rows of the last prompt take longest: they start first.
  for (int s = segments.num_segments - 1; s >= 0; --s) {
    const int rows = segments.row_count[s];
    for (int end = rows; end > 0;) {
      const int first = (end - 1) / kTileRows * kTileRows;
      for (int head = 0; head < args.num_kv_heads; ++head) {
        tiles.push_back({s, head, first, end - first});
      }
      end = first;
    }
  }
  return tiles;
}

// Buffers of one thread.
struct TileScratch {
  explicit TileScratch(const PagedAttentionArgs& args) {
    const int64_t dim = args.head_dim;
    const int64_t queries =
        int64_t{args.num_heads / args.num_kv_heads} * kTileRows;
    q.resize(queries * dim);
    k_t.resize(dim * kPageTokens);
    v.resize(kPageTokens * dim);
    scores.resize(queries * kPageTokens);
    o.resize(queries * dim);
    max.resize(queries);
    sum.resize(queries);
  }

  std::vector<float> q;       // [queries, D] scaled by D^-0.5
  std::vector<float> k_t;     // [D, kPageTokens]
  std::vector<float> v;       // [kPageTokens, D]
  std::vector<float> scores;  // [queries, kPageTokens]
  std::vector<float> o;       // [queries, D]
  std::vector<float> max;     // [queries]
  std::vector<float> sum;     // [queries]
};

// Loads the tile's queries; query (g, i) of head g and row i has number
// g * tile.count + i.
void LoadQueries(const PagedAttentionArgs& args, const Tile& tile,
                 TileScratch* t) {
  const int dim = args.head_dim;
  const int half = args.rope.half;
  const int heads = args.num_heads / args.num_kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  for (int i = 0; i < tile.count; ++i) {
    const int64_t row =
        int64_t{args.segments.row_begin[tile.segment]} + tile.first + i;
    for (int g = 0; g < heads; ++g) {
      float* const q = t->q.data() + (int64_t{g} * tile.count + i) * dim;
      const int64_t head = int64_t{tile.kv_head} * heads + g;
      LoadRow(args.qkv, args.qkv_dtype, row * QkvWidth(args) + head * dim, dim,
              q);
      NormAndRotateHead(q, dim, args.q_norm, args.eps,
                        args.rope.cos + row * half, args.rope.sin + row * half,
                        half);
      for (int d = 0; d < dim; ++d) q[d] *= scale;
    }
  }
}

// Unpacks `count` tokens of the page that starts at `position`; the rest of v
// is zero, so that weights beyond the last token add nothing.
void LoadPage(const PagedAttentionArgs& args, const Tile& tile,
              int64_t position, int count, TileScratch* t) {
  const int dim = args.head_dim;
  const int64_t from = KvOffset(args, tile.segment, position, tile.kv_head);
  float* const v = t->v.data();
  // v serves as the buffer in which keys are widened before the transpose.
  LoadRow(args.k_pages, args.kv_dtype, from, int64_t{count} * dim, v);
  for (int d = 0; d < dim; ++d) {
    float* const k_t = t->k_t.data() + int64_t{d} * kPageTokens;
    for (int j = 0; j < count; ++j) k_t[j] = v[j * dim + d];
    std::fill(k_t + count, k_t + kPageTokens, 0.0f);
  }
  LoadRow(args.v_pages, args.kv_dtype, from, int64_t{count} * dim, v);
  std::fill(v + int64_t{count} * dim, v + int64_t{kPageTokens} * dim, 0.0f);
}

void RunTile(const PagedAttentionArgs& args, const Tile& tile, TileScratch* t) {
  const int dim = args.head_dim;
  const int heads = args.num_heads / args.num_kv_heads;
  const int queries = heads * tile.count;
  const int64_t first_position =
      int64_t{args.segments.position[tile.segment]} + tile.first;
  const int64_t length = first_position + tile.count;
  LoadQueries(args, tile, t);
  std::fill(t->max.begin(), t->max.end(),
            -std::numeric_limits<float>::infinity());
  std::fill(t->sum.begin(), t->sum.end(), 0.0f);
  std::fill(t->o.begin(), t->o.end(), 0.0f);

  for (int64_t page = 0; page < length; page += kPageTokens) {
    const int count =
        static_cast<int>(std::min<int64_t>(kPageTokens, length - page));
    LoadPage(args, tile, page, count, t);
    simd::SmallGemm({t->q.data(), dim, t->k_t.data(), kPageTokens,
                     t->scores.data(), kPageTokens, queries, kPageTokens, dim,
                     false});
    for (int m = 0; m < queries; ++m) {
      // Keys of this page that the query may see.
      const int64_t visible = first_position + m % tile.count + 1 - page;
      float* const scores = t->scores.data() + int64_t{m} * kPageTokens;
      if (visible <= 0) {
        std::fill(scores, scores + kPageTokens, 0.0f);
        continue;
      }
      float rescale = 0;
      const SoftmaxUpdate update = {
          scores, static_cast<int>(std::min<int64_t>(visible, kPageTokens)),
          &t->max[m], &t->sum[m], &rescale};
      simd::Dispatch<SoftmaxUpdateKernel>(&update);
      float* const o = t->o.data() + int64_t{m} * dim;
      for (int d = 0; d < dim; ++d) o[d] *= rescale;
    }
    simd::SmallGemm({t->scores.data(), kPageTokens, t->v.data(), dim,
                     t->o.data(), dim, queries, dim, kPageTokens, true});
  }

  for (int m = 0; m < queries; ++m) {
    float* const o = t->o.data() + int64_t{m} * dim;
    for (int d = 0; d < dim; ++d) o[d] /= t->sum[m];
    const int64_t row = int64_t{args.segments.row_begin[tile.segment]} +
                        tile.first + m % tile.count;
    const int64_t head = int64_t{tile.kv_head} * heads + m / tile.count;
    StoreRow(o, dim, args.out_dtype, (row * args.num_heads + head) * dim,
             args.out);
  }
}

}  // namespace

void PagedAttention(const PagedAttentionArgs& args, ThreadPool* pool) {
  RING_CHECK_EQ(args.num_heads % args.num_kv_heads, 0);

  constexpr int64_t kRowGrain = 4;
  const std::vector<RowRef> rows = RowsOfSegments(args.segments);
  pool->ParallelFor(rows.size(), kRowGrain, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(args.head_dim);
    for (int64_t i = begin; i < end; ++i) {
      WriteKv(args, rows[i], buffer.data());
    }
  });

  const std::vector<Tile> tiles = MakeTiles(args);
  pool->ParallelFor(tiles.size(), 1, [&](int64_t begin, int64_t end) {
    TileScratch scratch(args);
    for (int64_t i = begin; i < end; ++i) RunTile(args, tiles[i], &scratch);
  });
}

}  // namespace ring::cpu
