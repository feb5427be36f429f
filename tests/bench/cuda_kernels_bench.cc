// Kernels of the GPU against its memory bandwidth, those of prompts in softmax
// attention by their rate of multiplications. Run by hand; prints one table.
// Every line is the median of 7 runs of at least 10 ms, each a
// replay of a recorded step whose ops go through inputs larger than L2. Bytes
// are those that have to move once; data is random.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "kernels/backend_factory.h"
#include "kernels/base/check.h"
#include "kernels/grouped_ffn/grouped_ffn.h"
#include "kernels/lightning_attention/lightning_attention.h"
#include "kernels/linear/linear.h"
#include "kernels/moe_routing/moe_routing.h"
#include "kernels/norm/residual_norm.h"
#include "kernels/paged_attention/paged_attention.h"
#include "kernels/sampling/sampling.h"
#include "tests/bench/device_read.h"

namespace ring {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kCacheBytes = int64_t{60} << 20;  // L2 of an H200
constexpr int kHidden = 4096;
constexpr int kHeads = 32;
constexpr int kKvHeads = 4;
constexpr int kHeadDim = 128;
constexpr int kExperts = 256;
constexpr int kTopK = 8;
constexpr int kInter = 1024;

class Bench {
 public:
  Bench() {
    auto backend = MakeBackend("cuda", 1);
    RING_CHECK(backend.ok()) << backend.status().ToString();
    gpu_ = *std::move(backend);
    std::mt19937 generator(1);
    // Exponents stay small in every type that the words are read as.
    pattern_.resize(int64_t{16} << 20);
    for (uint32_t& word : pattern_) word = generator() & 0xbfb7bfb7u;
  }

  Backend& gpu() { return *gpu_; }

  // Random bits of finite values.
  void* Random(int64_t bytes) {
    char* const data = static_cast<char*>(Take(bytes));
    const int64_t step = static_cast<int64_t>(pattern_.size()) * 4;
    const int64_t first = std::min(bytes, step);
    gpu_->CopyToDevice(data, pattern_.data(), first);
    for (int64_t at = first; at < bytes; at += step) {
      gpu_->Copy(data + at, data, std::min(step, bytes - at));
    }
    gpu_->Synchronize();
    return data;
  }
  template <typename T>
  T* Put(const std::vector<T>& values) {
    void* const data = Take(values.size() * sizeof(T));
    gpu_->CopyToDevice(data, values.data(), values.size() * sizeof(T));
    gpu_->Synchronize();
    return static_cast<T*>(data);
  }
  void Free() { buffers_.clear(); }

  WeightMatrix Matrix(DType dtype, int64_t rows, int64_t cols) {
    WeightMatrix w;
    w.dtype = dtype;
    w.rows = rows;
    w.cols = cols;
    w.row_stride = cols;
    w.data = Random(rows * cols * static_cast<int64_t>(SizeOf(dtype)));
    if (dtype == DType::kFloat8E4M3) {
      w.scale_cols = cols / kScaleBlock;
      w.scales =
          Put(std::vector<float>(rows / kScaleBlock * w.scale_cols, 0.01f));
      std::vector<int32_t> row_scale(rows);
      for (int64_t i = 0; i < rows; ++i) {
        row_scale[i] = static_cast<int32_t>(i / kScaleBlock);
      }
      w.row_scale = Put(row_scale);
    }
    return w;
  }

  // Median microseconds of one op; op(i) is the i-th of a step.
  double Time(int ops, absl::FunctionRef<void(int)> op) {
    const int bucket = ++last_bucket_;
    const auto step = [&] {
      for (int i = 0; i < ops; ++i) op(i);
    };
    gpu_->RunStep(bucket, step);
    gpu_->Synchronize();
    const auto run = [&](int repeats) {
      const Clock::time_point start = Clock::now();
      for (int i = 0; i < repeats; ++i) gpu_->RunStep(bucket, step);
      gpu_->Synchronize();
      return std::chrono::duration<double, std::micro>(Clock::now() - start)
          .count();
    };
    const int repeats = 1 + static_cast<int>(10000 / run(1));
    std::vector<double> samples;
    for (int i = 0; i < 7; ++i) samples.push_back(run(repeats));
    std::sort(samples.begin(), samples.end());
    return samples[samples.size() / 2] / repeats / ops;
  }

  void MeasureMemory() {
    constexpr int64_t kBytes = int64_t{4} << 30;
    void* const from = Random(kBytes);
    void* const to = Random(kBytes);
    copy_rate_ = 2.0 * kBytes / CopySeconds(to, from, kBytes) * 1e-12;
    read_rate_ = kBytes / SecondsToRead(from, kBytes) * 1e-12;
    Free();
    std::printf("%s: copy %.2f TB/s (read + written), read %.2f TB/s\n",
                gpu_->description(), copy_rate_, read_rate_);
    std::printf("%-34s %9s %9s %7s %7s %7s\n", "op", "us", "MB", "TB/s",
                "% copy", "% read");
  }

  void ReportFlops(const std::string& what, double us, double flops) {
    std::printf("%-34s %9.2f %27.1f TFLOP/s\n", what.c_str(), us,
                flops / us * 1e-6);
    Free();
  }

  void Report(const std::string& what, double us, double bytes) {
    const double rate = bytes / us * 1e-6;
    std::printf("%-34s %9.2f %9.1f %7.2f %7.1f %7.1f\n", what.c_str(), us,
                bytes * 1e-6, rate, 100 * rate / copy_rate_,
                100 * rate / read_rate_);
    Free();
  }

 private:
  // Not recorded: copies replayed from a graph reach only 2.8 TB/s.
  double CopySeconds(void* to, const void* from, int64_t bytes) {
    constexpr int kRepeats = 4;
    std::vector<double> samples;
    for (int i = 0; i < 7; ++i) {
      gpu_->Synchronize();
      const Clock::time_point start = Clock::now();
      for (int k = 0; k < kRepeats; ++k) gpu_->Copy(to, from, bytes);
      gpu_->Synchronize();
      const std::chrono::duration<double> elapsed = Clock::now() - start;
      samples.push_back(elapsed.count() / kRepeats);
    }
    std::sort(samples.begin(), samples.end());
    return samples[samples.size() / 2];
  }

  void* Take(int64_t bytes) {
    auto buffer = gpu_->Allocate(bytes);
    RING_CHECK(buffer.ok()) << buffer.status().ToString();
    buffers_.push_back(*std::move(buffer));
    return buffers_.back()->data();
  }

  std::unique_ptr<Backend> gpu_;
  std::vector<uint32_t> pattern_;
  std::vector<std::unique_ptr<DeviceBuffer>> buffers_;
  int last_bucket_ = 0;
  double copy_rate_ = 0;  // TB/s
  double read_rate_ = 0;
};

// How many sets of `bytes` are surely not in the cache when used in turn.
int NumSets(int64_t bytes) {
  return static_cast<int>(std::max<int64_t>(2, 4 * kCacheBytes / bytes + 1));
}

std::vector<int32_t> Counting(int n, int first, int step) {
  std::vector<int32_t> values(n);
  for (int i = 0; i < n; ++i) values[i] = first + i * step;
  return values;
}

// One new token in each of `batch` sequences.
StepSegments DecodeSegments(Bench* bench, int batch, int first_slot,
                            int position) {
  StepSegments s;
  s.num_segments = s.num_decode_segments = batch;
  s.row_begin = bench->Put(Counting(batch, 0, 1));
  s.row_count = bench->Put(Counting(batch, 1, 0));
  s.position = bench->Put(Counting(batch, position, 0));
  s.state_in = s.state_out = bench->Put(Counting(batch, first_slot, 1));
  s.page_row = bench->Put(Counting(batch, 0, 1));
  return s;
}

// Rows of one prompt, the first at `position`.
StepSegments PromptSegment(Bench* bench, int rows, int position) {
  StepSegments s;
  s.num_segments = 1;
  s.row_begin = s.state_in = s.state_out = s.page_row =
      bench->Put(std::vector<int32_t>{0});
  s.row_count = bench->Put(std::vector<int32_t>{rows});
  s.position = bench->Put(std::vector<int32_t>{position});
  return s;
}

RopeRows Rope(Bench* bench, int rows) {
  constexpr int kHalf = kHeadDim / 4;
  return {bench->Put(std::vector<float>(rows * kHalf, 0.8f)),
          bench->Put(std::vector<float>(rows * kHalf, 0.6f)), kHalf};
}

float* LightningWorkspace(Bench* bench, int rows, int heads) {
  return static_cast<float*>(
      bench->Random(LightningWorkspaceFloats(rows, heads, kHeadDim) * 4));
}

void LightningDecode(Bench* bench, int batch) {
  constexpr int64_t kWidth = kHeads * kHeadDim;
  constexpr int64_t kStateBytes = kWidth * kHeadDim * 4;
  const int sets = NumSets(batch * kStateBytes);
  LightningAttentionArgs args;
  args.qkv = bench->Random(batch * 3 * kWidth * 4);
  args.gate = bench->Random(batch * kWidth * 4);
  args.rows = batch;
  args.num_heads = kHeads;
  args.head_dim = kHeadDim;
  args.q_norm = args.k_norm = bench->Put(std::vector<float>(kHeadDim, 1.0f));
  args.eps = 1e-6f;
  args.rope = Rope(bench, batch);
  args.decay_rates = bench->Put(std::vector<float>(kHeads, 0.1f));
  args.states = static_cast<float*>(bench->Random(sets * batch * kStateBytes));
  args.g_norm = bench->Put(std::vector<float>(kWidth, 1.0f));
  args.groups = 4;
  args.out = bench->Random(batch * kWidth * 2);
  args.out_dtype = DType::kBFloat16;
  args.workspace = LightningWorkspace(bench, batch, kHeads);
  std::vector<StepSegments> segments;
  for (int set = 0; set < sets; ++set) {
    segments.push_back(DecodeSegments(bench, batch, set * batch, 4096));
  }
  const double us = bench->Time(sets, [&](int i) {
    args.segments = segments[i];
    bench->gpu().LightningAttention(args);
  });
  // States in and out; q, k, v, gate in; the result.
  bench->Report(absl::StrCat("lightning decode H=32 batch ", batch), us,
                batch * (2.0 * kStateBytes + kWidth * (4 * 4 + 2)));
}

// A whole prompt of `rows` rows with states in and out.
void LightningPrompt(Bench* bench, int heads, int rows, DType dtype) {
  const int64_t width = int64_t{heads} * kHeadDim;
  const int64_t element = static_cast<int64_t>(SizeOf(dtype));
  const int64_t state_bytes = width * kHeadDim * 4;
  LightningAttentionArgs args;
  args.qkv = bench->Random(rows * 3 * width * element);
  args.gate = bench->Random(rows * width * element);
  args.qkv_dtype = dtype;
  args.rows = rows;
  args.num_heads = heads;
  args.head_dim = kHeadDim;
  args.q_norm = args.k_norm = bench->Put(std::vector<float>(kHeadDim, 1.0f));
  args.eps = 1e-6f;
  args.rope = Rope(bench, rows);
  args.decay_rates = bench->Put(std::vector<float>(heads, 0.1f));
  args.states = static_cast<float*>(bench->Random(state_bytes));
  args.segments = PromptSegment(bench, rows, 4096);
  args.g_norm = bench->Put(std::vector<float>(width, 1.0f));
  args.groups = std::max(heads / 8, 1);
  args.out = bench->Random(rows * width * 2);
  args.out_dtype = DType::kBFloat16;
  args.workspace = LightningWorkspace(bench, rows, heads);
  const double us =
      bench->Time(2, [&](int) { bench->gpu().LightningAttention(args); });
  bench->Report(absl::StrCat("lightning prompt H=", heads, " ", rows / 1024,
                             "K ", Name(dtype)),
                us,
                2.0 * static_cast<double>(state_bytes) +
                    static_cast<double>(rows * width * (4 * element + 2)));
}

void DecodeLinear(Bench* bench, DType dtype, int out, int in, int rows) {
  const int64_t bytes = int64_t{out} * in * static_cast<int64_t>(SizeOf(dtype));
  const int sets = NumSets(bytes);
  std::vector<WeightMatrix> weights;
  for (int i = 0; i < sets; ++i) {
    weights.push_back(bench->Matrix(dtype, out, in));
  }
  LinearArgs args;
  args.x = bench->Random(int64_t{rows} * in * 2);
  args.x_dtype = DType::kBFloat16;
  args.rows = args.decode_rows = rows;
  args.y = bench->Random(int64_t{rows} * out * 4);
  const double us = bench->Time(sets, [&](int i) {
    args.weight = weights[i];
    bench->gpu().Linear(args);
  });
  bench->Report(
      absl::StrCat("linear ", in, " x ", out, " ", Name(dtype), " M=", rows),
      us, static_cast<double>(bytes + int64_t{rows} * (out * 4 + in * 2)));
}

// A layer's experts and the shared one, or with `fused` off as two ops.
void MoeDecode(Bench* bench, DType dtype, int rows, bool fused) {
  constexpr int kSteps = 16;  // of other experts each
  // One allocation an expert kind keeps experts at equal distances.
  const WeightMatrix gates =
      bench->Matrix(dtype, (kExperts + 1) * kInter, kHidden);
  const WeightMatrix ups =
      bench->Matrix(dtype, (kExperts + 1) * kInter, kHidden);
  const WeightMatrix downs =
      bench->Matrix(dtype, (kExperts + 1) * kHidden, kInter);
  std::vector<GatedMlpWeights> experts;
  for (int e = 0; e <= kExperts; ++e) {
    experts.push_back({Rows(gates, e * kInter, (e + 1) * kInter),
                       Rows(ups, e * kInter, (e + 1) * kInter),
                       Rows(downs, e * kHidden, (e + 1) * kHidden)});
  }
  std::mt19937 generator(3);
  std::vector<int32_t*> choices;
  double touched = 0;
  for (int step = 0; step < kSteps; ++step) {
    std::vector<int32_t> choice;
    for (int row = 0; row < rows; ++row) {
      std::vector<int32_t> all = Counting(kExperts, 0, 1);
      std::shuffle(all.begin(), all.end(), generator);
      choice.insert(choice.end(), all.begin(), all.begin() + kTopK);
    }
    touched += static_cast<double>(
        std::set<int32_t>(choice.begin(), choice.end()).size());
    choices.push_back(bench->Put(choice));
  }
  GroupedFfnArgs grouped;
  grouped.x = bench->Random(rows * kHidden * 2);
  grouped.x_dtype = DType::kBFloat16;
  grouped.rows = rows;
  grouped.top_k = kTopK;
  grouped.weights = bench->Put(std::vector<float>(rows * kTopK, 0.3f));
  grouped.experts = absl::MakeConstSpan(experts.data(), kExperts);
  grouped.hidden = kHidden;
  grouped.y = static_cast<float*>(bench->Random(rows * kHidden * 4));
  grouped.workspace = bench->Random(GroupedFfnWorkspaceBytes(
      rows, kTopK, kHidden, kInter, grouped.x_dtype, kExperts));
  grouped.shared = &experts.back();
  grouped.shared_rows = grouped.shared_decode_rows = rows;
  const DenseFfnArgs shared = SharedFfn(grouped);
  if (!fused) grouped.shared = nullptr;
  const double us = bench->Time(kSteps, [&](int i) {
    grouped.local_experts = choices[i];
    bench->gpu().GroupedFfn(grouped);
    if (!fused) bench->gpu().DenseFfn(shared);
  });
  bench->Report(absl::StrCat("moe decode ", Name(dtype), " M=", rows,
                             fused ? "" : " shared apart"),
                us,
                (touched / kSteps + 1) * 3 * kHidden * kInter *
                    static_cast<double>(SizeOf(dtype)));
}

// The norm of the residual stream, the router and the choice of experts.
void Routing(Bench* bench, int rows) {
  constexpr int kSets = 16;
  std::vector<WeightMatrix> routers;
  for (int i = 0; i < kSets; ++i) {
    routers.push_back(bench->Matrix(DType::kFloat32, kExperts, kHidden));
  }
  MoeRoutingArgs args;
  args.x = bench->Random(int64_t{rows} * kHidden * 4);
  args.rows = args.decode_rows = rows;
  args.norm_weight = bench->Put(std::vector<float>(kHidden, 1.0f));
  args.eps = 1e-6f;
  args.normed = static_cast<float*>(bench->Random(int64_t{rows} * kHidden * 4));
  args.expert_bias = bench->Put(std::vector<float>(kExperts, 0.1f));
  args.num_experts = kExperts;
  args.n_group = 8;
  args.topk_group = 4;
  args.top_k = kTopK;
  args.logits =
      static_cast<float*>(bench->Random(int64_t{rows} * kExperts * 4));
  args.experts = bench->Put(std::vector<int32_t>(rows * kTopK));
  args.weights = bench->Put(std::vector<float>(rows * kTopK));
  const double us = bench->Time(kSets, [&](int i) {
    args.router = routers[i];
    bench->gpu().MoeRouting(args);
  });
  bench->Report(absl::StrCat("norm, router, top-8 M=", rows), us,
                4.0 * kHidden * (kExperts + rows));
}

void Norm(Bench* bench, int rows) {
  ResidualNormArgs args;
  args.parts = bench->Random(int64_t{rows} * kHidden * 4);
  args.num_parts = 1;
  args.rows = rows;
  args.cols = kHidden;
  args.residual =
      static_cast<float*>(bench->Random(int64_t{rows} * kHidden * 4));
  args.norm_weight = bench->Put(std::vector<float>(kHidden, 1.0f));
  args.eps = 1e-6f;
  args.normed = bench->Random(int64_t{rows} * kHidden * 2);
  args.normed_dtype = DType::kBFloat16;
  const double us =
      bench->Time(32, [&](int) { bench->gpu().ResidualNorm(args); });
  bench->Report(absl::StrCat("residual + norm (from L2) M=", rows), us,
                14.0 * kHidden * rows);
}

// Drawing tokens as one rank runs it.
void Sampling(Bench* bench, int rows, bool greedy) {
  constexpr int kVocab = 157184;
  const int sets = NumSets(int64_t{rows} * kVocab * 4);
  std::vector<const float*> logits;
  for (int i = 0; i < sets; ++i) {
    logits.push_back(
        static_cast<const float*>(bench->Random(int64_t{rows} * kVocab * 4)));
  }
  SamplingRow row;
  row.temperature = greedy ? 0 : 1;
  const SamplingRow* const params =
      bench->Put(std::vector<SamplingRow>(rows, row));
  const auto part = bench->Put(std::vector<RowStats>(rows));
  const auto stats = bench->Put(std::vector<RowStats>(rows));
  const auto thresholds = bench->Put(std::vector<Threshold>(rows));
  const auto draws = bench->Put(std::vector<TokenDraw>(rows));
  const auto tokens = bench->Put(std::vector<SampledToken>(rows));
  const auto ids = bench->Put(std::vector<int32_t>(rows));
  const double us = bench->Time(sets, [&](int i) {
    const LogitsSlice slice = {logits[i], rows, kVocab, 0, kVocab};
    bench->gpu().LogitStats({slice, part});
    bench->gpu().MergeStats({part, 1, rows, stats, thresholds});
    if (!greedy) {
      bench->gpu().DrawTokens({slice, params, stats, thresholds, draws});
    }
    bench->gpu().FinishTokens(
        {params, stats, stats, draws, 1, rows, tokens, ids});
  });
  bench->Report(
      absl::StrCat("sampling, ", greedy ? "greedy" : "Gumbel", ", M=", rows),
      us, 4.0 * rows * kVocab * (greedy ? 1 : 2));
}

PagedAttentionArgs PagedArgs(Bench* bench, int rows, int sequences, int pages) {
  const int64_t page_bytes = int64_t{kKvHeads} * kPageTokens * kHeadDim * 2;
  PagedAttentionArgs args;
  args.qkv = bench->Random(rows * (kHeads + 2 * kKvHeads) * kHeadDim * 4);
  args.rows = rows;
  args.num_heads = kHeads;
  args.num_kv_heads = kKvHeads;
  args.head_dim = kHeadDim;
  args.q_norm = args.k_norm = bench->Put(std::vector<float>(kHeadDim, 1.0f));
  args.eps = 1e-6f;
  args.rope = Rope(bench, rows);
  std::vector<int32_t> table = Counting(sequences * pages, 0, 1);
  std::mt19937 generator(5);
  std::shuffle(table.begin(), table.end(), generator);
  args.segments.page_table = bench->Put(table);
  args.segments.page_stride = pages;
  args.k_pages = bench->Random(sequences * pages * page_bytes);
  args.v_pages = bench->Random(sequences * pages * page_bytes);
  args.out = bench->Random(int64_t{rows} * kHeads * kHeadDim * 2);
  args.out_dtype = DType::kBFloat16;
  return args;
}

void PagedDecode(Bench* bench, int batch, int context) {
  const int pages = (context + kPageTokens) / kPageTokens;
  PagedAttentionArgs args = PagedArgs(bench, batch, batch, pages);
  const StepSegments own = args.segments;
  args.segments = DecodeSegments(bench, batch, 0, context - 1);
  args.segments.page_table = own.page_table;
  args.segments.page_stride = own.page_stride;
  const double us =
      bench->Time(4, [&](int) { bench->gpu().PagedAttention(args); });
  bench->Report(absl::StrCat("GQA decode ", context, " tokens batch ", batch),
                us, 2.0 * batch * context * kKvHeads * kHeadDim * 2);
}

// `rows` rows of a prompt behind `before` earlier ones.
void PagedPrompt(Bench* bench, int rows, int before) {
  const int pages = (before + rows) / kPageTokens;
  PagedAttentionArgs args = PagedArgs(bench, rows, 1, pages);
  const StepSegments own = args.segments;
  args.segments = PromptSegment(bench, rows, before);
  args.segments.page_table = own.page_table;
  args.segments.page_stride = own.page_stride;
  const double us =
      bench->Time(2, [&](int) { bench->gpu().PagedAttention(args); });
  bench->ReportFlops(
      absl::StrCat("GQA prompt ", rows / 1024, "K after ", before / 1024, "K"),
      us, 4.0 * kHeads * kHeadDim * rows * (before + rows / 2.0));
}

void Decode(Bench* bench) {
  constexpr DType kBf16 = DType::kBFloat16;
  constexpr DType kFp8 = DType::kFloat8E4M3;
  for (DType dtype : {kBf16, kFp8}) {
    for (int rows : {1, 8, 16, 32, 128, 256}) {
      DecodeLinear(bench, dtype, 12288, kHidden, rows);
    }
    for (int rows : {1, 32}) DecodeLinear(bench, dtype, 4096, 4096, rows);
  }
  for (int rows : {1, 16, 128}) {
    DecodeLinear(bench, kBf16, 157184, kHidden, rows);
  }
  for (int rows : {1, 8, 32, 128, 256}) MoeDecode(bench, kFp8, rows, true);
  MoeDecode(bench, kFp8, 1, false);
  for (int rows : {1, 8, 32}) MoeDecode(bench, kBf16, rows, true);
}

void SmallOps(Bench* bench) {
  for (int rows : {1, 32, 128}) Routing(bench, rows);
  for (int rows : {1, 256}) Norm(bench, rows);
  for (bool greedy : {true, false}) {
    for (int rows : {1, 32, 256}) Sampling(bench, rows, greedy);
  }
}

void Lightning(Bench* bench) {
  for (int batch : {1, 64, 256}) LightningDecode(bench, batch);
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    LightningPrompt(bench, kHeads, 4096, dtype);
    LightningPrompt(bench, kHeads, 32768, dtype);
    LightningPrompt(bench, 8, 65536, dtype);
    LightningPrompt(bench, 4, 32768, dtype);
  }
}

void Paged(Bench* bench) {
  for (int batch : {1, 8}) PagedDecode(bench, batch, 131072);
  for (int batch : {1, 64, 256}) PagedDecode(bench, batch, 4096);
  PagedPrompt(bench, 4096, 0);
  PagedPrompt(bench, 8192, 24576);
  PagedPrompt(bench, 8192, 122880);
  PagedPrompt(bench, 32768, 0);
}

void Main(const std::string& part) {
  Bench bench;
  bench.MeasureMemory();
  if (part.empty() || part == "lightning") Lightning(&bench);
  if (part.empty() || part == "paged") Paged(&bench);
  if (part.empty() || part == "decode") Decode(&bench);
  if (part.empty() || part == "small") SmallOps(&bench);
}

}  // namespace
}  // namespace ring

// Argument: "lightning", "paged", "decode" or "small", for one part of the
// table.
int main(int argc, char** argv) { ring::Main(argc > 1 ? argv[1] : ""); }
