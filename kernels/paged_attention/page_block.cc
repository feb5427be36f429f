#include "kernels/paged_attention/page_block.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/simd/vec.h"

namespace ring::cpu {
namespace {

using simd::FloatVec;

// Queries of the largest block whose sums fit the registers: 16 sums of 32
// registers with AVX-512, 8 of 16 otherwise.
template <int kLanes>
inline constexpr int kMostQueries = kLanes == 16 ? 8 : 4;

RING_INLINE float Widen(float x) { return x; }
RING_INLINE float Widen(BFloat16 x) { return ToFloat(x); }

// Asks for rows [row, row + rows) of a page's keys or values.
template <typename T>
RING_INLINE void PrefetchRows(const void* page, int row, int rows, int dim) {
  constexpr int64_t kLineBytes = 64;
  const char* const begin =
      reinterpret_cast<const char*>(static_cast<const T*>(page) + row * dim);
  const int64_t bytes = int64_t{rows} * dim * static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < bytes; i += kLineBytes) {
    __builtin_prefetch(begin + i);
  }
}

// Keys stay where they are, row-major: kLanes dot products at a time, their
// lanes summed together at the end. kQueries queries share the loads of
// kLanes / kQueries keys.
template <typename T>
struct ScoresKernel {
  template <int kLanes, int kQueries>
  RING_INLINE static void QueryBlock(const PageBlock& b, int first_query) {
    constexpr int kTokens = kLanes / kQueries;
    const int dim = b.head_dim;
    const float* const q = b.q + int64_t{first_query} * dim;
    for (int token = 0; token < b.tokens; token += kTokens) {
      const T* const k = static_cast<const T*>(b.k) + int64_t{token} * dim;
      if (first_query == 0) PrefetchRows<T>(b.v, token, kTokens, dim);
      FloatVec<kLanes> sums[kLanes] = {};  // query i, token t: i * kTokens + t
      int d = 0;
      for (; d + kLanes <= dim; d += kLanes) {
        FloatVec<kLanes> key[kTokens];
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) {
          simd::Load<kLanes>(k + t * dim + d, key[t]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < kQueries; ++i) {
          FloatVec<kLanes> query;
          simd::Load<kLanes>(q + i * dim + d, query);
#pragma GCC unroll 16
          for (int t = 0; t < kTokens; ++t) {
            sums[i * kTokens + t] += query * key[t];
          }
        }
      }
      simd::SumEach<kLanes>(sums);
      float dots[kLanes];
      simd::Store<kLanes>(sums[0], dots);
      for (; d < dim; ++d) {
        for (int i = 0; i < kQueries; ++i) {
          for (int t = 0; t < kTokens; ++t) {
            dots[i * kTokens + t] += q[i * dim + d] * Widen(k[t * dim + d]);
          }
        }
      }
      for (int i = 0; i < kQueries; ++i) {
        std::memcpy(b.weights + int64_t{first_query + i} * kPageTokens + token,
                    dots + i * kTokens, kTokens * sizeof(float));
      }
    }
  }

  template <int kLanes>
  RING_INLINE static void Run(const PageBlock* block) {
    int query = 0;
    for (; query + kMostQueries<kLanes> <= block->queries;
         query += kMostQueries<kLanes>) {
      QueryBlock<kLanes, kMostQueries<kLanes>>(*block, query);
    }
    for (; query + 4 <= block->queries; query += 4) {
      QueryBlock<kLanes, 4>(*block, query);
    }
    for (; query + 2 <= block->queries; query += 2) {
      QueryBlock<kLanes, 2>(*block, query);
    }
    for (; query < block->queries; ++query) {
      QueryBlock<kLanes, 1>(*block, query);
    }
  }
};

// kQueries x kVectors sums stay in registers while the page's tokens go by.
template <typename T>
struct ValuesKernel {
  template <int kLanes, int kQueries, int kVectors>
  RING_INLINE static void Block(const PageBlock& b, int first_query,
                                int column) {
    const int dim = b.head_dim;
    const float* const weights = b.weights + int64_t{first_query} * kPageTokens;
    float* const o = b.o + int64_t{first_query} * dim + column;
    const T* v = static_cast<const T*>(b.v) + column;
    FloatVec<kLanes> sums[kQueries][kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) {
        simd::Load<kLanes>(o + i * dim + c * kLanes, sums[i][c]);
      }
    }
    const bool fetch_ahead =
        first_query == 0 && column == 0 && b.next_k != nullptr;
    for (int token = 0; token < b.tokens; ++token, v += dim) {
      if (fetch_ahead) PrefetchRows<T>(b.next_k, token, 1, dim);
      FloatVec<kLanes> value[kVectors];
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) {
        simd::Load<kLanes>(v + c * kLanes, value[c]);
      }
#pragma GCC unroll 8
      for (int i = 0; i < kQueries; ++i) {
        const FloatVec<kLanes> weight =
            FloatVec<kLanes>{} + weights[i * kPageTokens + token];
#pragma GCC unroll 8
        for (int c = 0; c < kVectors; ++c) sums[i][c] += weight * value[c];
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) {
        simd::Store<kLanes>(sums[i][c], o + i * dim + c * kLanes);
      }
    }
  }

  template <int kLanes, int kQueries>
  RING_INLINE static void QueryBlock(const PageBlock& b, int first_query) {
    // Few queries take wide blocks, to have enough sums in flight.
    constexpr int kVectors = kQueries >= 4 ? 2 : 4;
    int column = 0;
    for (; column + kVectors * kLanes <= b.head_dim;
         column += kVectors * kLanes) {
      Block<kLanes, kQueries, kVectors>(b, first_query, column);
    }
    for (; column + kLanes <= b.head_dim; column += kLanes) {
      Block<kLanes, kQueries, 1>(b, first_query, column);
    }
    const T* const v = static_cast<const T*>(b.v);
    for (; column < b.head_dim; ++column) {
      for (int i = first_query; i < first_query + kQueries; ++i) {
        float sum = b.o[int64_t{i} * b.head_dim + column];
        for (int token = 0; token < b.tokens; ++token) {
          sum += b.weights[int64_t{i} * kPageTokens + token] *
                 Widen(v[token * b.head_dim + column]);
        }
        b.o[int64_t{i} * b.head_dim + column] = sum;
      }
    }
  }

  template <int kLanes>
  RING_INLINE static void Run(const PageBlock* block) {
    int query = 0;
    for (; query + kMostQueries<kLanes> <= block->queries;
         query += kMostQueries<kLanes>) {
      QueryBlock<kLanes, kMostQueries<kLanes>>(*block, query);
    }
    for (; query + 4 <= block->queries; query += 4) {
      QueryBlock<kLanes, 4>(*block, query);
    }
    for (; query < block->queries; ++query) {
      QueryBlock<kLanes, 1>(*block, query);
    }
  }
};

struct SoftmaxKernel {
  template <int kLanes>
  RING_INLINE static void Run(float* scores, int count, SoftmaxState* state,
                              float* o, int head_dim) {
    for (int j = count; j < kPageTokens; ++j) {
      scores[j] = -std::numeric_limits<float>::infinity();
    }
    float max = state->max;
    for (int j = 0; j < count; ++j) max = scores[j] > max ? scores[j] : max;
    FloatVec<kLanes> sum = {};
    for (int j = 0; j < kPageTokens; j += kLanes) {
      FloatVec<kLanes> x;
      simd::Load<kLanes>(scores + j, x);
      x -= max;
      simd::Exp<kLanes>(x);
      sum += x;
      simd::Store<kLanes>(x, scores + j);
    }
    if (max != state->max) {
      const float rescale = std::exp(state->max - max);
      state->sum *= rescale;
      for (int d = 0; d < head_dim; ++d) o[d] *= rescale;
    }
    state->sum += simd::Sum<kLanes>(sum);
    state->max = max;
  }
};

template <template <typename> class Kernel>
void DispatchOnType(const PageBlock& block) {
  if (block.kv_dtype == DType::kFloat32) {
    simd::Dispatch<Kernel<float>>(&block);
    return;
  }
  RING_CHECK(block.kv_dtype == DType::kBFloat16) << Name(block.kv_dtype);
  simd::Dispatch<Kernel<BFloat16>>(&block);
}

}  // namespace

void PageScores(const PageBlock& block) { DispatchOnType<ScoresKernel>(block); }

void AddPageValues(const PageBlock& block) {
  DispatchOnType<ValuesKernel>(block);
}

void UpdateSoftmax(float* scores, int count, SoftmaxState* state, float* o,
                   int head_dim) {
  simd::Dispatch<SoftmaxKernel>(scores, count, state, o, head_dim);
}

}  // namespace ring::cpu
