// Compiled for AVX-512 with bf16 and for AMX: the tile registers multiply 16
// weight rows with 16 activation rows, 32 columns at a time. Only bf16 x bf16
// differs from the kernels for AVX-512 with bf16. Subnormal inputs and sums
// count as zero.
//
// A product of tiles is C [n, m] += A [n, 32 columns] B [16 pairs of columns,
// m] with n weight rows and m activation rows. A is loaded as weights lie in
// memory. B needs activations pair by pair: words of 16 rows are transposed
// when they are packed, and one row alone is in that order already.
//
// One accumulator takes the columns of an output in order, 32 a step, whatever
// is computed beside it: the bits of a row are the same in any batch.
#define RING_DOT_LANES 16
#include "kernels/linear/dot_panel_inl.h"

namespace ring {
namespace {

constexpr int kTile = 16;                   // rows of any tile
constexpr int64_t kTileWords = 16 * kTile;  // of a whole one
constexpr int64_t kGroupBytes = 64;         // of a row of A
// Where the processor's own prefetching ends.
constexpr int64_t kPageBytes = 4096;
// Groups of two weight tiles that stay in the first-level cache while many rows
// pass, and the rows whose sums wait in the scratch meanwhile.
constexpr int64_t kBlockGroups = 16;
constexpr int64_t kPassingRows = 256;
constexpr int64_t kTilesOfAStep = 4;
static_assert(kPassingRows / (2 * kTile) * kTilesOfAStep * kTileWords <=
              kDecodedFloats);

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Not std::min: see dot_panel_inl.h.
inline int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

// Tile registers: 0 to 3 are C, 4 and 5 are A, 6 and 7 are B. All C and A have
// n rows, all B and C have m columns.
void Configure(int n, int m) {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    const bool is_a = i == 4 || i == 5;
    config.rows[i] = static_cast<uint8_t>(i < 6 ? n : kTile);
    config.row_bytes[i] = static_cast<uint16_t>(is_a ? kGroupBytes : 4 * m);
  }
  // The intrinsics do not tell the compiler which memory they read.
  asm volatile("" ::: "memory");
  _tile_loadconfig(&config);
}

// Lanes of two vectors by fours of words, as 4x4 blocks are transposed: words
// 0, 1 and 2, 3 of both interleaved, then the same of pairs of words; then
// whole fours, the even and the odd ones.
inline Words LowWords(Words a, Words b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25,
                                 12, 28, 13, 29);
}
inline Words HighWords(Words a, Words b) {
  return __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11,
                                 27, 14, 30, 15, 31);
}
inline Words LowPairs(Words a, Words b) {
  return __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25,
                                 12, 13, 28, 29);
}
inline Words HighPairs(Words a, Words b) {
  return __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26,
                                 27, 14, 15, 30, 31);
}
inline Words EvenFours(Words a, Words b) {
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19,
                                 24, 25, 26, 27);
}
inline Words OddFours(Words a, Words b) {
  return __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22,
                                 23, 28, 29, 30, 31);
}

// to [16, 16] = the transpose of 16 rows of 16 words.
void Transpose(const int32_t* const (&from)[kTile], int32_t* to) {
  Words a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = LoadWords(from[i]);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = LowWords(a[i], a[i + 1]);
    b[i + 1] = HighWords(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    a[i] = LowPairs(b[i], b[i + 2]);
    a[i + 1] = HighPairs(b[i], b[i + 2]);
    a[i + 2] = LowPairs(b[i + 1], b[i + 3]);
    a[i + 3] = HighPairs(b[i + 1], b[i + 3]);
  }
  // Four l of a[4 q + c] is column 4 l + c of rows 4 q to 4 q + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const Words even0 = EvenFours(a[c], a[4 + c]);
    const Words even1 = EvenFours(a[8 + c], a[12 + c]);
    const Words odd0 = OddFours(a[c], a[4 + c]);
    const Words odd1 = OddFours(a[8 + c], a[12 + c]);
    const Words column[4] = {EvenFours(even0, even1), EvenFours(odd0, odd1),
                             OddFours(even0, even1), OddFours(odd0, odd1)};
#pragma GCC unroll 4
    for (int l = 0; l < 4; ++l) {
      *reinterpret_cast<StoredWords*>(to + (4 * l + c) * kTile) = column[l];
    }
  }
}

// 16 rows of bf16 as the words that B tiles are loaded from: [groups, 16 pairs,
// 16 rows], zeros behind the last column. One row alone lies pair by pair.
void PackTiles(const DotLayout& layout, const void* const* x, int64_t rows,
               DType x_dtype, int32_t* packed) {
  if (rows == 1) {
    PackPairs(layout, x, rows, x_dtype, packed);
    return;
  }
  const int32_t* from[kTile];
  const int64_t whole_groups = layout.cols / (2 * kTile);
  for (int64_t g = 0; g < whole_groups; ++g, packed += kTileWords) {
    for (int i = 0; i < kTile; ++i) {
      from[i] = static_cast<const int32_t*>(x[i]) + g * kTile;
    }
    Transpose(from, packed);
  }
  const int64_t done = whole_groups * 2 * kTile;
  if (done == layout.cols) return;
  int32_t padded[kTileWords] = {};
  for (int i = 0; i < kTile; ++i) {
    std::memcpy(padded + i * kTile, static_cast<const uint16_t*>(x[i]) + done,
                (layout.cols - done) * 2);
    from[i] = padded + i * kTile;
  }
  Transpose(from, packed);
}

// C register kC to memory; the intrinsic takes nothing but literals.
template <int kC>
void StoreSums(void* to, int64_t row_bytes) {
  if constexpr (kC == 0) _tile_stored(0, to, row_bytes);
  if constexpr (kC == 1) _tile_stored(1, to, row_bytes);
  if constexpr (kC == 2) _tile_stored(2, to, row_bytes);
  if constexpr (kC == 3) _tile_stored(3, to, row_bytes);
}

template <int kC>
void LoadSums(const void* from, int64_t row_bytes) {
  if constexpr (kC == 0) _tile_loadd(0, from, row_bytes);
  if constexpr (kC == 1) _tile_loadd(1, from, row_bytes);
  if constexpr (kC == 2) _tile_loadd(2, from, row_bytes);
  if constexpr (kC == 3) _tile_loadd(3, from, row_bytes);
}

class TilePanel {
 public:
  static void Run(const DotPanelArgs& args) {
    TilePanel panel(args);
    const int64_t whole = (args.n_end - args.n_begin) / kTile * kTile;
    const int64_t whole_end = args.n_begin + whole;
    if (whole > 0) panel.Outputs(args.n_begin, whole_end, kTile);
    if (whole_end < args.n_end) {
      panel.Outputs(whole_end, args.n_end,
                    static_cast<int>(args.n_end - whole_end));
    }
    _tile_release();
  }

 private:
  explicit TilePanel(const DotPanelArgs& args)
      : args_(args),
        groups_(args.layout->packed_words / kTile),
        whole_groups_(args.layout->cols / (2 * kTile)),
        row_bytes_(args.weight->row_stride * 2),
        prefetch_(row_bytes_ >= kPageBytes),
        m_(args.rows == 1 ? 1 : kTile) {}

  // Weight rows [n, n_end) in tiles of n_rows. Up to 16 rows wait for weights
  // from memory or a far cache, which come fastest one tile after the other;
  // with more rows two tiles times two keep the unit busy.
  void Outputs(int64_t n, int64_t n_end, int n_rows) {
    n_rows_ = n_rows;
    Configure(n_rows, m_);
    while (n < n_end) {
      const int64_t tiles = (n_end - n) / n_rows;
      if (args_.rows <= kTile) {
        Multiply<1, 1>({0, n, 0, groups_, nullptr});
        n += n_rows;
      } else {
        n += tiles == 1 ? AllRows<1>(n) : AllRows<2>(n);
      }
    }
  }

  // More than 16 rows times kN tiles of weights. Returns the weight rows taken.
  template <int kN>
  int64_t AllRows(int64_t n) {
    for (int64_t begin = 0; begin < args_.rows; begin += kPassingRows) {
      const int64_t end = Min(begin + kPassingRows, args_.rows);
      int64_t group = 0;
      do {
        const int64_t group_end = Min(group + kBlockGroups, groups_);
        float* sums = args_.scratch;
        for (int64_t m = begin; m < end; m += 2 * kTile) {
          const Block block = {m, n, group, group_end, sums};
          end - m > kTile ? Multiply<kN, 2>(block) : Multiply<kN, 1>(block);
          sums += kTilesOfAStep * kTileWords;
        }
        group = group_end;
      } while (group < groups_);
    }
    return kN * n_rows_;
  }

  // What one Multiply computes: rows from m on, weight rows from n on, groups
  // [group, group_end) of their columns. Sums go through `sums` unless these
  // are all groups.
  struct Block {
    int64_t m;
    int64_t n;
    int64_t group;
    int64_t group_end;
    float* sums;
  };

  // 16 kM rows times kN tiles of weights.
  template <int kN, int kM>
  void Multiply(const Block& block) {
    const int64_t m = block.m;
    const int64_t n = block.n;
    const int64_t tile_bytes = n_rows_ * row_bytes_;
    const char* a = static_cast<const char*>(args_.weight->data) +
                    n * row_bytes_ + block.group * kGroupBytes;
    const int64_t b_step = kTile * m_;
    const int32_t* b =
        args_.x + m * args_.layout->packed_words + block.group * b_step;
    asm volatile("" ::: "memory");
    if (block.group == 0) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    } else {
      LoadSums<0>(block.sums, kGroupBytes);
      if constexpr (kN * kM > 1)
        LoadSums<1>(block.sums + kTileWords, kGroupBytes);
      if constexpr (kN * kM > 2) {
        LoadSums<2>(block.sums + 2 * kTileWords, kGroupBytes);
        LoadSums<3>(block.sums + 3 * kTileWords, kGroupBytes);
      }
    }
    const int64_t whole_end = Min(block.group_end, whole_groups_);
    for (int64_t g = block.group; g < whole_end; ++g) {
      if (prefetch_ && m == 0) {
        // The next tiles' bytes at this place, into the second-level cache:
        // the first rows meet weights that lie in memory.
        const char* next = a + kN * tile_bytes;
        for (int r = 0; r < kN * kTile; ++r, next += row_bytes_) {
          __builtin_prefetch(next, 0, 2);
        }
      }
      Step<kN, kM>({a, row_bytes_, tile_bytes}, b);
      a += kGroupBytes;
      b += b_step;
    }
    if (whole_end < block.group_end) {
      // The weights' last columns, with zeros up to a whole group.
      const int64_t rest = args_.layout->cols * 2 - whole_groups_ * kGroupBytes;
      alignas(64) char padded[kN * kTile * kGroupBytes] = {};
      for (int64_t r = 0; r < kN * n_rows_; ++r) {
        std::memcpy(padded + r * kGroupBytes, a + r * row_bytes_, rest);
      }
      asm volatile("" ::: "memory");
      Step<kN, kM>({padded, kGroupBytes, n_rows_ * kGroupBytes}, b);
    }
    if (block.group_end < groups_) {
      StoreSums<0>(block.sums, kGroupBytes);
      if constexpr (kN * kM > 1)
        StoreSums<1>(block.sums + kTileWords, kGroupBytes);
      if constexpr (kN * kM > 2) {
        StoreSums<2>(block.sums + 2 * kTileWords, kGroupBytes);
        StoreSums<3>(block.sums + 3 * kTileWords, kGroupBytes);
      }
      return;
    }
    StoreTile<0>(m, n);
    if constexpr (kM == 2) {
      StoreTile<1>(m + kTile, n);
      if constexpr (kN == 2) {
        StoreTile<2>(m, n + n_rows_);
        StoreTile<3>(m + kTile, n + n_rows_);
      }
    } else if constexpr (kN == 2) {
      StoreTile<1>(m, n + n_rows_);
    }
  }

  // Where the A tiles of one step lie.
  struct WeightTiles {
    const char* data;
    int64_t row_bytes;
    int64_t tile_bytes;
  };

  template <int kN, int kM>
  void Step(const WeightTiles& a, const int32_t* b) {
    const int64_t b_stride = 4 * m_;
    _tile_loadd(6, b, b_stride);
    _tile_loadd(4, a.data, a.row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kM == 2) {
      _tile_loadd(7, b + kTile * args_.layout->packed_words, b_stride);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (kN == 2) {
        _tile_loadd(5, a.data + a.tile_bytes, a.row_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    } else if constexpr (kN == 2) {
      _tile_loadd(5, a.data + a.tile_bytes, a.row_bytes);
      _tile_dpbf16ps(1, 5, 6);
    }
  }

  // C register kC [n, m] to the outputs of rows from m on, weight rows from n.
  template <int kC>
  void StoreTile(int64_t m, int64_t n) {
    float* out = args_.out + m * args_.out_stride + n - args_.n_begin;
    if (m_ == 1) {
      StoreSums<kC>(out, sizeof(float));
      return;
    }
    alignas(64) int32_t sums[kTileWords], turned[kTileWords];
    StoreSums<kC>(sums, kGroupBytes);
    const int32_t* from[kTile];
    for (int i = 0; i < kTile; ++i) from[i] = sums + i * kTile;
    Transpose(from, turned);
    const __mmask16 mask = static_cast<__mmask16>((1u << n_rows_) - 1);
    for (int i = 0; i < kTile && m + i < args_.rows; ++i) {
      _mm512_mask_storeu_epi32(out + i * args_.out_stride, mask,
                               _mm512_load_si512(turned + i * kTile));
    }
  }

  const DotPanelArgs& args_;
  const int64_t groups_;
  const int64_t whole_groups_;
  const int64_t row_bytes_;
  const bool prefetch_;
  const int m_;     // columns of a B tile
  int n_rows_ = 0;  // rows of an A tile
};

}  // namespace

const DotKernels kAmxBf16DotKernels = {
    kWidenedDotKernels.f32,
    kWidenedDotKernels.bf16,
    kWidenedDotKernels.fp8,
    {2 * kTile, kTile, kTile, PackTiles, TilePanel::Run}};

}  // namespace ring
