// The template behind dot_panel.h. The including file sets RING_DOT_LANES, the
// number of fp32 lanes of its vectors, and is compiled for its instruction set.
//
// All of it lies in an unnamed namespace and calls no inline function of
// another header: code made for one instruction set must never be merged by
// the linker into code that runs on a lesser processor.
//
// A step takes one vector of 32-bit words from each weight row. A word holds
// one fp32, two bf16 or four FP8 weights; "part" p of it is widened with a
// shift and a mask, so no lane ever moves. Packed activations are laid out to
// match: [group][part][lane] is column group * lanes * parts + lane * parts +
// part.
#pragma once

#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels/linear/dot_panel.h"

namespace ring {
namespace {

constexpr int kLanes = RING_DOT_LANES;

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
// The same in memory: any alignment, any type.
typedef uint32_t StoredWords
    __attribute__((vector_size(kLanes * 4), aligned(1), may_alias));
typedef float StoredFloats
    __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

// Accumulators, activations, a weight vector and its mask share the registers;
// a tile that needs one more runs at half the speed.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr bool kManyRegisters = true;  // 32
#else
constexpr bool kManyRegisters = false;  // 16
#endif

// Weight bytes of a panel that stay in the second-level cache while all rows
// pass over them.
constexpr int64_t kPanelBytes = 192 * 1024;
inline Words LoadWords(const void* p) {
  return *static_cast<const StoredWords*>(p);
}
inline Floats LoadFloats(const void* p) {
  return *static_cast<const StoredFloats*>(p);
}

// a * b + c, rounded once where the instruction set can.
inline Floats MulAdd(Floats a, Floats b, Floats c) {
#if RING_DOT_LANES == 16 && defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif RING_DOT_LANES == 8 && defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// Makes the compiler hold v in a register. Left alone it reads a vector that
// several instructions use again from memory for each of them, and the loads
// become the limit.
inline void KeepInRegister(Floats& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#else
  (void)v;
#endif
}

typedef float Quad __attribute__((vector_size(16)));

inline float SumLanes(Quad v) {
  const Quad pairs = v + __builtin_shufflevector(v, v, 2, 3, 2, 3);
  return pairs[0] + pairs[1];
}
#if RING_DOT_LANES >= 8
typedef float Octet __attribute__((vector_size(32)));

inline float SumLanes(Octet v) {
  return SumLanes(__builtin_shufflevector(v, v, 0, 1, 2, 3) +
                  __builtin_shufflevector(v, v, 4, 5, 6, 7));
}
#endif
#if RING_DOT_LANES == 16
inline float SumLanes(Floats v) {
  return SumLanes(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                  __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
}
#endif

struct F32Weights {
  static constexpr int kParts = 1;
  static constexpr int64_t kBytes = 4;
  static constexpr bool kScaled = false;
  static Floats Widen(Words words, int) { return (Floats)words; }
};

struct Bf16Weights {
  static constexpr int kParts = 2;
  static constexpr int64_t kBytes = 2;
  static constexpr bool kScaled = false;
  static Floats Widen(Words words, int part) {
    return (Floats)(part == 0 ? words << 16 : words & 0xffff0000u);
  }
};

// e4m3 has fp32's layout with a narrower exponent: put the fields in place and
// correct the bias with a multiplication, which is exact for subnormals too.
struct Fp8Weights {
  static constexpr int kParts = 4;
  static constexpr int64_t kBytes = 1;
  static constexpr bool kScaled = true;
  static Floats Widen(Words words, int part) {
    const Ints top = (Ints)(words << (24 - 8 * part));
    const Ints fields = (top >> 4) & (Ints)(Words{} + 0x87f00000u);
    const Floats value = (Floats)fields * 0x1p120f;
    const Ints is_nan = ((top >> 24) & 0x7f) == 0x7f;
    return (Floats)((Ints)value | is_nan);
  }
};

inline int64_t SegmentBegin(const DotLayout& layout, int64_t s) {
  return s == 0 ? 0 : layout.first_segment + (s - 1) * layout.segment;
}
inline int64_t SegmentEnd(const DotLayout& layout, int64_t s) {
  const int64_t end = SegmentBegin(layout, s + 1);
  return end < layout.cols ? end : layout.cols;
}
inline int64_t SegmentWord(const DotLayout& layout, int64_t s) {
  return s == 0 ? 0 : layout.first_words + (s - 1) * layout.segment_words;
}

// Activations widened to fp32 in the weights' [part][lane] order.
template <typename Weights>
struct WidenedMath {
  static constexpr int kGroupCols = kLanes * Weights::kParts;
  static constexpr int kGroupWords = kGroupCols;

  static void Pack(const DotLayout& layout, const void* const* row, int64_t,
                   DType x_dtype, int32_t* packed) {
    const void* const x = row[0];
    for (int64_t s = 0; s < layout.segments; ++s) {
      const int64_t end = SegmentEnd(layout, s);
      uint32_t* to =
          reinterpret_cast<uint32_t*>(packed) + SegmentWord(layout, s);
      for (int64_t j = SegmentBegin(layout, s); j < end; j += kGroupCols) {
        const int64_t count = end - j < kGroupCols ? end - j : kGroupCols;
        uint32_t bits[kGroupCols] = {};
        if (x_dtype == DType::kBFloat16) {
          const uint16_t* from = static_cast<const uint16_t*>(x) + j;
          for (int64_t c = 0; c < count; ++c) {
            bits[c] = static_cast<uint32_t>(from[c]) << 16;
          }
        } else {
          std::memcpy(bits, static_cast<const float*>(x) + j, count * 4);
        }
        for (int part = 0; part < Weights::kParts; ++part) {
          for (int l = 0; l < kLanes; ++l) {
            *to++ = bits[l * Weights::kParts + part];
          }
        }
      }
    }
  }

  // acc += one group of x times one group of w, for every pair.
  template <int kM, int kN>
  static inline __attribute__((always_inline)) void Step(
      const int32_t* const* x, const char* const* w, const Floats* scale,
      Floats (&acc)[kM][kN]) {
#pragma GCC unroll 4
    for (int part = 0; part < Weights::kParts; ++part) {
      Floats wide_x[kM];
#pragma GCC unroll 16
      for (int i = 0; i < kM; ++i) {
        wide_x[i] = LoadFloats(x[i] + part * kLanes);
        KeepInRegister(wide_x[i]);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kN; ++r) {
        Floats wide_w = Weights::Widen(LoadWords(w[r]), part);
        if constexpr (Weights::kScaled) wide_w *= scale[r];
#pragma GCC unroll 16
        for (int i = 0; i < kM; ++i) {
          acc[i][r] = MulAdd(wide_x[i], wide_w, acc[i][r]);
        }
      }
    }
  }
};

// bf16 activations in column order, two to a word, like bf16 weights; groups of
// 32 columns. x is bf16.
[[maybe_unused]] inline void PackPairs(const DotLayout& layout,
                                       const void* const* row, int64_t, DType,
                                       int32_t* packed) {
  for (int64_t s = 0; s < layout.segments; ++s) {
    const int64_t begin = SegmentBegin(layout, s);
    const int64_t cols = SegmentEnd(layout, s) - begin;
    int32_t* to = packed + SegmentWord(layout, s);
    std::memset(to, 0, (cols + 31) / 32 * 64);
    std::memcpy(to, static_cast<const uint16_t*>(row[0]) + begin, cols * 2);
  }
}

// The loops of one call, down to tiles of rows x weight rows.
template <typename Weights, typename Math>
class Panel {
 public:
  static void Run(const DotPanelArgs& args) {
    // Weight rows that stay in the cache while all rows pass over them. A
    // single tile of rows reads every weight row once, from end to end.
    int64_t step = args.n_end - args.n_begin;
    if (args.rows > kMaxM) {
      const int64_t row_bytes = args.layout->cols * Weights::kBytes + 1;
      const int64_t fitting = kPanelBytes / row_bytes / kNAlign * kNAlign;
      step = fitting > kNAlign ? fitting : kNAlign;
    }
    for (int64_t n = args.n_begin; n < args.n_end; n += step) {
      const int64_t n_end = n + step < args.n_end ? n + step : args.n_end;
      RunResident(args, n, n_end);
    }
  }

 private:
  static constexpr int kMaxM = 4;
  static constexpr int kNAlign = 24;

  // Tiles of `rows` rows from row m on, over a range of weight rows and of
  // blocks of columns.
  struct Strip {
    int64_t m;
    int64_t rows;
    int64_t n_begin;
    int64_t n_end;
    int64_t block_begin;
    int64_t block_end;
  };

  static void RunResident(const DotPanelArgs& args, int64_t n_begin,
                          int64_t n_end) {
    const DotLayout& layout = *args.layout;
    // One block even if there are no columns: it writes the empty sums.
    const int64_t segments = layout.segments > 0 ? layout.segments : 1;
    const int64_t blocks =
        (segments + layout.block_segments - 1) / layout.block_segments;
    if (args.rows <= kMaxM) {
      RunStrip(args, {0, args.rows, n_begin, n_end, 0, blocks});
      return;
    }
    int64_t rows = 0;
    for (int64_t m = 0; m < args.rows; m += rows) {
      // Equal tiles: five rows are three and two, not four and one.
      const int64_t rest = args.rows - m;
      const int64_t tiles = (rest + kMaxM - 1) / kMaxM;
      rows = (rest + tiles - 1) / tiles;
      // A block of the rows stays in the first-level cache.
      for (int64_t block = 0; block < blocks; ++block) {
        RunStrip(args, {m, rows, n_begin, n_end, block, block + 1});
      }
    }
  }

  static void RunStrip(const DotPanelArgs& args, const Strip& strip) {
    switch (strip.rows) {
      case 1:
        return Tiles<1, 4>(args, strip);
      case 2:
        return Tiles<2, 4>(args, strip);
      case 3:
        return Tiles<3, (kManyRegisters ? 6 : 3)>(args, strip);
      case 4:
        return Tiles<4, (kManyRegisters ? 6 : 2)>(args, strip);
    }
  }

  template <int kM, int kN>
  static void Tiles(const DotPanelArgs& args, const Strip& strip) {
    for (int64_t n = strip.n_begin; n < strip.n_end; n += kN) {
      for (int64_t b = strip.block_begin; b < strip.block_end; ++b) {
        // The first rows meet weights that lie in memory, the others find
        // them in the cache.
        if (strip.m == 0) {
          Tile<kM, kN, true>(args, strip, n, b);
        } else {
          Tile<kM, kN, false>(args, strip, n, b);
        }
      }
    }
  }

  // One block of columns of kM x kN outputs. Weight rows past the strip's end
  // are stand-ins for row n, computed and dropped.
  template <int kM, int kN, bool kPrefetch>
  static void Tile(const DotPanelArgs& args, const Strip& strip, int64_t n,
                   int64_t block) {
    const DotLayout& layout = *args.layout;
    const WeightMatrix& weight = *args.weight;
    const int64_t row_bytes = weight.row_stride * Weights::kBytes;
    int64_t row[kN];
    const char* row_data[kN];
    for (int r = 0; r < kN; ++r) {
      row[r] = n + r < strip.n_end ? n + r : n;
      row_data[r] = static_cast<const char*>(weight.data) + row[r] * row_bytes;
    }
    Floats acc[kM][kN] = {};
    const int64_t s_begin = block * layout.block_segments;
    const int64_t s_limit = s_begin + layout.block_segments;
    const int64_t s_end = s_limit < layout.segments ? s_limit : layout.segments;
    for (int64_t s = s_begin; s < s_end; ++s) {
      const int64_t begin = SegmentBegin(layout, s);
      const int64_t cols = SegmentEnd(layout, s) - begin;
      Floats scale[kN];
      if constexpr (Weights::kScaled) {
        const int64_t column = (weight.scale_col_offset + begin) / kScaleBlock;
        for (int r = 0; r < kN; ++r) {
          const int64_t scale_row = weight.row_scale[row[r]];
          scale[r] =
              Floats{} + weight.scales[scale_row * weight.scale_cols + column];
        }
      }
      const int32_t* x[kM];
      const char* w[kN];
      for (int i = 0; i < kM; ++i) {
        x[i] = args.x + (strip.m + i) * layout.packed_words +
               SegmentWord(layout, s);
      }
      for (int r = 0; r < kN; ++r) {
        w[r] = row_data[r] + begin * Weights::kBytes;
      }
      const int64_t groups = cols / Math::kGroupCols;
      for (int64_t g = 0; g < groups; ++g) {
        Math::template Step<kM, kN>(x, w, scale, acc);
#pragma GCC unroll 16
        for (int i = 0; i < kM; ++i) x[i] += Math::kGroupWords;
#pragma GCC unroll 16
        for (int r = 0; r < kN; ++r) {
          // The next tile's bytes at this place, into the second-level cache:
          // rows are often a memory page long, where the processor's own
          // prefetching ends.
          if constexpr (kPrefetch)
            __builtin_prefetch(w[r] + kN * row_bytes, 0, 2);
          w[r] += Math::kGroupCols * Weights::kBytes;
        }
      }
      const int64_t rest = cols - groups * Math::kGroupCols;
      if (rest > 0) {
        char padded[kN][kLanes * 4] = {};
        const char* tail[kN];
        for (int r = 0; r < kN; ++r) {
          std::memcpy(padded[r], w[r], rest * Weights::kBytes);
          tail[r] = padded[r];
        }
        Math::template Step<kM, kN>(x, tail, scale, acc);
      }
    }
    for (int i = 0; i < kM; ++i) {
      float* out =
          args.out + (strip.m + i) * args.out_stride + n - args.n_begin;
      for (int r = 0; r < kN && n + r < strip.n_end; ++r) {
        const float sum = SumLanes(acc[i][r]);
        out[r] = block == 0 ? sum : out[r] + sum;
      }
    }
  }
};

// FP8 weights: decoding costs more than a product with few rows, so for many
// rows weights are decoded once, into fp32 in the order of packed activations.
// The products are then those of fp32 weights, in the same order, and the bits
// of a row are the same on either way.
class Fp8Panel {
 public:
  static void Run(const DotPanelArgs& args) {
    if (args.rows <= kFewRows) {
      Panel<Fp8Weights, WidenedMath<Fp8Weights>>::Run(args);
      return;
    }
    const DotLayout& layout = *args.layout;
    WeightMatrix decoded;
    decoded.data = args.scratch;
    decoded.dtype = DType::kFloat32;
    decoded.cols = layout.packed_words;
    decoded.row_stride = layout.packed_words + kDecodedPad;
    const DotLayout decoded_layout = DecodedLayout(layout);
    const int64_t fitting =
        kDecodedFloats / decoded.row_stride / kMinDecodedRows * kMinDecodedRows;
    const int64_t step = fitting > 0 ? fitting : kMinDecodedRows;
    for (int64_t n = args.n_begin; n < args.n_end; n += step) {
      decoded.rows = args.n_end - n < step ? args.n_end - n : step;
      for (int64_t r = 0; r < decoded.rows; ++r) {
        DecodeRow(layout, *args.weight, n + r,
                  args.scratch + r * decoded.row_stride);
      }
      DotPanelArgs part = args;
      part.layout = &decoded_layout;
      part.weight = &decoded;
      part.n_begin = 0;
      part.n_end = decoded.rows;
      part.out = args.out + (n - args.n_begin);
      Panel<F32Weights, WidenedMath<F32Weights>>::Run(part);
    }
  }

 private:
  static constexpr int64_t kFewRows = 4;

  // Every block of segments is one segment of packed words.
  static DotLayout DecodedLayout(const DotLayout& layout) {
    DotLayout decoded;
    decoded.cols = layout.packed_words;
    decoded.block_segments = 1;
    decoded.segments =
        (layout.segments + layout.block_segments - 1) / layout.block_segments;
    const int64_t first = SegmentWord(layout, layout.block_segments);
    decoded.first_segment = first < decoded.cols ? first : decoded.cols;
    decoded.segment = layout.block_segments * layout.segment_words;
    decoded.first_words = decoded.first_segment;
    decoded.segment_words = decoded.segment;
    decoded.packed_words = layout.packed_words;
    return decoded;
  }

  static void DecodeRow(const DotLayout& layout, const WeightMatrix& weight,
                        int64_t row, float* to) {
    constexpr int64_t kGroup = kLanes * Fp8Weights::kParts;
    const char* data =
        static_cast<const char*>(weight.data) + row * weight.row_stride;
    for (int64_t s = 0; s < layout.segments; ++s) {
      const int64_t begin = SegmentBegin(layout, s);
      const int64_t end = SegmentEnd(layout, s);
      const int64_t column = (weight.scale_col_offset + begin) / kScaleBlock;
      const float scale =
          weight.scales[weight.row_scale[row] * weight.scale_cols + column];
      for (int64_t j = begin; j < end; j += kGroup) {
        char padded[kGroup] = {};
        const char* from = data + j;
        if (end - j < kGroup) {
          std::memcpy(padded, from, end - j);
          from = padded;
        }
        for (int part = 0; part < Fp8Weights::kParts; ++part) {
          *reinterpret_cast<StoredFloats*>(to) =
              Fp8Weights::Widen(LoadWords(from), part) * scale;
          to += kLanes;
        }
      }
    }
  }
};

template <typename Weights, typename Math>
constexpr DotKernel MakeDotKernel() {
  return {Math::kGroupCols, Math::kGroupWords, 1, Math::Pack,
          Panel<Weights, Math>::Run};
}

constexpr DotKernels kWidenedDotKernels = {
    MakeDotKernel<F32Weights, WidenedMath<F32Weights>>(),
    MakeDotKernel<Bf16Weights, WidenedMath<Bf16Weights>>(),
    {WidenedMath<Fp8Weights>::kGroupCols, WidenedMath<Fp8Weights>::kGroupWords,
     1, WidenedMath<Fp8Weights>::Pack, Fp8Panel::Run},
    {}};

}  // namespace
}  // namespace ring
