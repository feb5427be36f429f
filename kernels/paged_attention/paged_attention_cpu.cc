// First every row's k and v go to the pages, then the work is split over
// (segment, KV head, tile of query rows). A tile holds all query heads that
// read the KV head, so a page is loaded once for all of them. Long contexts of
// decode segments are split further by pages, at fixed positions so that the
// result does not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/thread_pool.h"
#include "kernels/elementwise/row_math.h"
#include "kernels/paged_attention/page_block.h"
#include "kernels/paged_attention/paged_attention.h"

namespace ring::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Query rows of a tile.
constexpr int kTileRows = 32;
// Pages of a tile of a decode segment: 1,024 tokens.
constexpr int64_t kSplitPages = 16;

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

// Query rows [first_row, first_row + rows) of a segment against the pages
// [first_page, end_page) of one KV head.
struct Tile {
  int segment;
  int kv_head;
  int first_row;
  int rows;
  int64_t first_page;
  int64_t end_page;
  // Where the unfinished result goes if the pages of these rows are split over
  // several tiles: index of the first of its `rows * heads` partial results.
  // -1: the tile has all pages.
  int64_t partial;
};

// Unfinished results of queries whose pages are split.
struct PartialResults {
  std::vector<SoftmaxState> state;
  std::vector<float> o;  // [state.size(), D]
};

int HeadsPerKvHead(const PagedAttentionArgs& args) {
  return args.num_heads / args.num_kv_heads;
}

// The tiles of a step, long ones first as far as that is known: prompts stand
// last and the last rows of a prompt see the most pages.
std::vector<Tile> MakeTiles(const PagedAttentionArgs& args,
                            int64_t* num_partial) {
  const StepSegments& segments = args.segments;
  std::vector<Tile> tiles;
  *num_partial = 0;
  for (int s = segments.num_segments - 1; s >= 0; --s) {
    const bool decode = s < segments.num_decode_segments;
    for (int end = segments.row_count[s]; end > 0;) {
      const int first = (end - 1) / kTileRows * kTileRows;
      const int64_t pages =
          (int64_t{segments.position[s]} + end + kPageTokens - 1) / kPageTokens;
      const int64_t stride = decode ? kSplitPages : pages;
      for (int head = 0; head < args.num_kv_heads; ++head) {
        for (int64_t page = 0; page < pages; page += stride) {
          Tile tile = {s,           head, first,
                       end - first, page, std::min(page + stride, pages),
                       -1};
          if (pages > stride) {
            tile.partial = *num_partial;
            *num_partial += int64_t{tile.rows} * HeadsPerKvHead(args);
          }
          tiles.push_back(tile);
        }
      }
      end = first;
    }
  }
  return tiles;
}

// Buffers of one thread. Query (g, i) of head g and row i of a tile has number
// g * tile.rows + i.
struct TileScratch {
  explicit TileScratch(const PagedAttentionArgs& args)
      : queries(int64_t{HeadsPerKvHead(args)} * kTileRows),
        q(queries * args.head_dim),
        weights(queries * kPageTokens),
        o(queries * args.head_dim),
        state(queries) {}

  int64_t queries;
  std::vector<float> q;        // [queries, D] scaled by D^-0.5
  std::vector<float> weights;  // [queries, kPageTokens]
  std::vector<float> o;        // [queries, D]
  std::vector<SoftmaxState> state;
};

void LoadQueries(const PagedAttentionArgs& args, const Tile& tile,
                 TileScratch* t) {
  const int dim = args.head_dim;
  const int half = args.rope.half;
  const int heads = HeadsPerKvHead(args);
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  for (int i = 0; i < tile.rows; ++i) {
    const int64_t row =
        int64_t{args.segments.row_begin[tile.segment]} + tile.first_row + i;
    for (int g = 0; g < heads; ++g) {
      float* const q = t->q.data() + (int64_t{g} * tile.rows + i) * dim;
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

// Divides query `number` of the tile by its sum and stores it in `out`.
void StoreQuery(const PagedAttentionArgs& args, const Tile& tile, int number,
                const SoftmaxState& state, float* o) {
  const int dim = args.head_dim;
  for (int d = 0; d < dim; ++d) o[d] /= state.sum;
  const int64_t row = int64_t{args.segments.row_begin[tile.segment]} +
                      tile.first_row + number % tile.rows;
  const int64_t head =
      int64_t{tile.kv_head} * HeadsPerKvHead(args) + number / tile.rows;
  StoreRow(o, dim, args.out_dtype, (row * args.num_heads + head) * dim,
           args.out);
}

const void* KvEntry(const void* pages, DType dtype, int64_t offset) {
  return static_cast<const char*>(pages) +
         offset * static_cast<int64_t>(SizeOf(dtype));
}

void RunTile(const PagedAttentionArgs& args, const Tile& tile, TileScratch* t,
             PartialResults* partial) {
  const int dim = args.head_dim;
  const int queries = HeadsPerKvHead(args) * tile.rows;
  const int64_t first_position =
      int64_t{args.segments.position[tile.segment]} + tile.first_row;
  const int64_t length = first_position + tile.rows;
  LoadQueries(args, tile, t);
  std::fill(t->o.begin(), t->o.end(), 0.0f);
  std::fill(t->state.begin(), t->state.end(), SoftmaxState{-kInfinity, 0});

  PageBlock block;
  block.q = t->q.data();
  block.queries = queries;
  block.head_dim = dim;
  block.kv_dtype = args.kv_dtype;
  block.weights = t->weights.data();
  block.o = t->o.data();
  for (int64_t page = tile.first_page; page < tile.end_page; ++page) {
    const int64_t start = page * kPageTokens;
    const int64_t from = KvOffset(args, tile.segment, start, tile.kv_head);
    block.k = KvEntry(args.k_pages, args.kv_dtype, from);
    block.v = KvEntry(args.v_pages, args.kv_dtype, from);
    block.tokens =
        static_cast<int>(std::min<int64_t>(kPageTokens, length - start));
    block.next_k = page + 1 < tile.end_page
                       ? KvEntry(args.k_pages, args.kv_dtype,
                                 KvOffset(args, tile.segment,
                                          start + kPageTokens, tile.kv_head))
                       : nullptr;
    PageScores(block);
    for (int m = 0; m < queries; ++m) {
      float* const weights = t->weights.data() + int64_t{m} * kPageTokens;
      // Keys of this page that the query may see.
      const int64_t visible = first_position + m % tile.rows + 1 - start;
      if (visible <= 0) {
        std::fill(weights, weights + kPageTokens, 0.0f);
        continue;
      }
      UpdateSoftmax(weights,
                    static_cast<int>(std::min<int64_t>(visible, kPageTokens)),
                    &t->state[m], t->o.data() + int64_t{m} * dim, dim);
    }
    AddPageValues(block);
  }

  if (tile.partial >= 0) {
    std::copy_n(t->state.begin(), queries,
                partial->state.begin() + tile.partial);
    std::copy_n(t->o.begin(), int64_t{queries} * dim,
                partial->o.begin() + tile.partial * dim);
    return;
  }
  for (int m = 0; m < queries; ++m) {
    StoreQuery(args, tile, m, t->state[m], t->o.data() + int64_t{m} * dim);
  }
}

// Adds the results of tiles [begin, end), which share rows and KV head and
// have consecutive pages, in order of pages.
void CombineTiles(const PagedAttentionArgs& args, const Tile* begin,
                  const Tile* end, PartialResults* partial) {
  const int dim = args.head_dim;
  const int queries = HeadsPerKvHead(args) * begin->rows;
  for (int m = 0; m < queries; ++m) {
    SoftmaxState& state = partial->state[begin->partial + m];
    float* const o = partial->o.data() + (begin->partial + m) * dim;
    for (const Tile* tile = begin + 1; tile < end; ++tile) {
      const SoftmaxState& other = partial->state[tile->partial + m];
      const float* const other_o =
          partial->o.data() + (tile->partial + m) * dim;
      const float max = std::max(state.max, other.max);
      const float scale = std::exp(state.max - max);
      const float other_scale = std::exp(other.max - max);
      state.sum = state.sum * scale + other.sum * other_scale;
      state.max = max;
      for (int d = 0; d < dim; ++d) {
        o[d] = o[d] * scale + other_o[d] * other_scale;
      }
    }
    StoreQuery(args, *begin, m, state, o);
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

  int64_t num_partial = 0;
  const std::vector<Tile> tiles = MakeTiles(args, &num_partial);
  PartialResults partial;
  partial.state.resize(num_partial);
  partial.o.resize(num_partial * args.head_dim);
  pool->ParallelFor(tiles.size(), 1, [&](int64_t begin, int64_t end) {
    TileScratch scratch(args);
    for (int64_t i = begin; i < end; ++i) {
      RunTile(args, tiles[i], &scratch, &partial);
    }
  });
  if (num_partial == 0) return;

  pool->ParallelFor(tiles.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (tiles[i].partial < 0 || tiles[i].first_page != 0) continue;
      int64_t last = i + 1;
      while (last < static_cast<int64_t>(tiles.size()) &&
             tiles[last].first_page != 0) {
        ++last;
      }
      CombineTiles(args, &tiles[i], tiles.data() + last, &partial);
    }
  });
}

}  // namespace ring::cpu
