#include "worker/bench_main.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/paged_attention/paged_attention.h"
#include "kernels/weights/random_weights.h"
#include "ring/v1/plan.pb.h"
#include "worker/decode_bucket.h"

namespace ring {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kWarmSteps = 4;
constexpr int kTimedSteps = 24;
constexpr int kPromptRepeats = 5;
// Long prompts vary little: they are repeated less often after this time.
constexpr int kFewestPromptRepeats = 2;
constexpr double kPromptSeconds = 5;
constexpr int64_t kCopyBytes = int64_t{256} << 20;  // far beyond any cache
constexpr int kCopies = 20;

// Tokens that a sequence has in the end.
int64_t FinalTokens(const WorkerFlags& flags) {
  return flags.bench_context + kWarmSteps + kTimedSteps;
}

int64_t PagesOfDecode(const WorkerFlags& flags) {
  return FinalTokens(flags) / kPageTokens + 1;
}

int64_t PagesOfPrompt(int64_t tokens) {
  return (tokens + kPageTokens - 1) / kPageTokens;
}

double Seconds(Clock::time_point from) {
  return std::chrono::duration<double>(Clock::now() - from).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

int64_t BytesOf(const WeightMatrix& w) {
  const int64_t scales =
      w.scales == nullptr ? 0 : w.rows / kScaleBlock * w.scale_cols * 4;
  return w.rows * w.cols * static_cast<int64_t>(SizeOf(w.dtype)) + scales;
}

int64_t BytesOf(const GatedMlpWeights& mlp) {
  return BytesOf(mlp.gate) + BytesOf(mlp.up) + BytesOf(mlp.down);
}

class Bench {
 public:
  Bench(const WorkerFlags& flags, Rank* rank, Progress* progress)
      : flags_(flags), rank_(*rank), progress_(progress) {}

  absl::Status Run() {
    RING_RETURN_IF_ERROR(MeasureCopy());
    FillCaches();
    if (speaks()) {
      std::printf(
          "%s, dp %d x tp %d, %.1f GB of weights a rank, copy %.2f TB/s "
          "(read + written)\n",
          rank_.engine().backend().description(), rank_.mesh().dp(),
          rank_.mesh().tp(), rank_.weights().bytes() * 1e-9,
          copy_rate_ * 1e-12);
      std::printf("%-24s %10s %10s %10s %9s %8s\n", "what", "ms", "fastest",
                  "tokens/s", "GB/step", "% copy");
    }
    for (const int batch : flags_.bench_batches) {
      RING_RETURN_IF_ERROR(Decode(batch));
    }
    for (const int64_t tokens : flags_.bench_prompts) {
      RING_RETURN_IF_ERROR(Prompt(tokens));
    }
    return absl::OkStatus();
  }

 private:
  bool speaks() const { return rank_.mesh().is_leader(); }

  absl::Status MeasureCopy() {
    Backend& backend = rank_.engine().backend();
    RING_ASSIGN_OR_RETURN(const auto from, backend.Allocate(kCopyBytes));
    RING_ASSIGN_OR_RETURN(const auto to, backend.Allocate(kCopyBytes));
    double best = 0;
    for (int repeat = 0; repeat < 5; ++repeat) {
      backend.Synchronize();
      const Clock::time_point start = Clock::now();
      for (int i = 0; i < kCopies; ++i) {
        backend.Copy(to->data(), from->data(), kCopyBytes);
        progress_->Tick();
      }
      backend.Synchronize();
      best = std::max(best, 2.0 * kCopyBytes * kCopies / Seconds(start));
    }
    copy_rate_ = best;
    return absl::OkStatus();
  }

  void FillCaches() {
    const ModelConfig& config = rank_.config();
    CachePool& cache = rank_.engine().cache();
    RandomWeightsArgs random;
    random.deviation = 1;
    random.cols = random.tensor_cols = config.head_dim;
    for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
      progress_->Tick();
      if (config.IsSoftmaxLayer(layer)) {
        random.rows =
            rank_.num_pages() * rank_.mesh().kv_heads().size() * kPageTokens;
        random.dtype = cache.kv_dtype();
        for (void* const pages :
             {cache.KeyPages(layer), cache.ValuePages(layer)}) {
          random.key += 1;
          random.out = pages;
          rank_.engine().backend().RandomWeights(random);
        }
      } else {
        random.rows = flags_.max_sequences * rank_.mesh().heads().size() *
                      config.head_dim;
        random.dtype = DType::kFloat32;
        random.key += 1;
        random.out = cache.States(layer);
        rank_.engine().backend().RandomWeights(random);
      }
    }
    rank_.engine().backend().Synchronize();
  }

  v1::BatchPlan NewPlan() {
    v1::BatchPlan plan;
    plan.set_kind(v1::BatchPlan::STEP);
    plan.set_step(next_step_++);
    plan.set_num_token_ids(static_cast<int32_t>(rank_.config().vocab_size));
    for (int g = 0; g < rank_.mesh().dp(); ++g) plan.add_groups();
    return plan;
  }

  // Gives `sequence` its pages in every group: a step of one row.
  absl::Status TakePages(int sequence, int64_t pages) {
    v1::BatchPlan plan = NewPlan();
    plan.set_exchange(v1::BatchPlan::REPLICATED);
    plan.set_padded_rows(1);
    for (v1::GroupPlan& group : *plan.mutable_groups()) {
      for (int64_t i = 0; i < pages; ++i) {
        v1::PageEntry* const entry = group.add_page_entries();
        entry->set_sequence(sequence);
        entry->set_index(static_cast<int32_t>(i));
        entry->set_page(static_cast<int32_t>(sequence * pages + i));
      }
      AddDecodeRow(sequence, flags_.bench_context, &group);
    }
    return rank_.engine().Step(plan).status();
  }

  void AddDecodeRow(int sequence, int64_t position, v1::GroupPlan* group) {
    v1::Segment* const segment = group->add_segments();
    segment->set_sequence(sequence);
    segment->set_position(static_cast<int32_t>(position));
    segment->set_state_in(sequence);
    segment->set_state_out(sequence);
    segment->add_tokens(-1);
    v1::Sample* const sample = group->add_samples();
    sample->set_row(group->segments_size() - 1);
    sample->set_sequence(sequence);
    sample->set_position(static_cast<int32_t>(position + 1));
  }

  absl::Status Decode(int batch) {
    const int64_t pages = PagesOfDecode(flags_);
    for (int s = 0; s < batch; ++s) RING_RETURN_IF_ERROR(TakePages(s, pages));
    // As the step loop does it: a step is queued before the one before it has
    // been collected, and lasts from one result to the next.
    std::vector<double> seconds;
    Engine& engine = rank_.engine();
    Clock::time_point last_result;
    for (int step = 0; step < kWarmSteps + kTimedSteps; ++step) {
      v1::BatchPlan plan = NewPlan();
      plan.set_exchange(v1::BatchPlan::REPLICATED);
      plan.set_decode_only(true);
      plan.set_padded_rows(static_cast<int32_t>(DecodeBucket(batch)));
      for (v1::GroupPlan& group : *plan.mutable_groups()) {
        for (int s = 0; s < batch; ++s) {
          AddDecodeRow(s, flags_.bench_context + step, &group);
        }
      }
      RING_RETURN_IF_ERROR(engine.Enqueue(plan));
      if (step == 0) continue;
      engine.Collect();
      if (step > kWarmSteps) seconds.push_back(Seconds(last_result));
      last_result = Clock::now();
    }
    engine.Collect();
    const double bytes = BytesPerStep(batch);
    Print(absl::StrCat("decode ", batch, " x ", flags_.bench_context), seconds,
          int64_t{batch} * rank_.mesh().dp(), bytes);
    return absl::OkStatus();
  }

  absl::Status Prompt(int64_t tokens) {
    RING_RETURN_IF_ERROR(TakePages(0, PagesOfPrompt(tokens)));
    std::vector<double> seconds;
    double total = 0;
    for (int repeat = 0; repeat <= kPromptRepeats; ++repeat) {
      if (total > kPromptSeconds && repeat > kFewestPromptRepeats) break;
      const Clock::time_point start = Clock::now();
      for (int64_t begin = 0; begin < tokens;
           begin += flags_.max_batch_tokens) {
        const int64_t rows = std::min(flags_.max_batch_tokens, tokens - begin);
        RING_RETURN_IF_ERROR(PromptStep(begin, rows, begin + rows == tokens));
      }
      rank_.engine().backend().Synchronize();
      if (repeat > 0) seconds.push_back(Seconds(start));
      total += Seconds(start);
    }
    Print(absl::StrCat("prompt ", tokens), seconds, tokens * rank_.mesh().dp(),
          0);
    return absl::OkStatus();
  }

  absl::Status PromptStep(int64_t begin, int64_t rows, bool last) {
    v1::BatchPlan plan = NewPlan();
    const bool alone = rank_.mesh().world_size() == 1;
    plan.set_exchange(alone ? v1::BatchPlan::REPLICATED
                            : v1::BatchPlan::ALL_TO_ALL);
    plan.set_padded_rows(static_cast<int32_t>(rows));
    for (v1::GroupPlan& group : *plan.mutable_groups()) {
      v1::Segment* const segment = group.add_segments();
      segment->set_sequence(0);
      segment->set_position(static_cast<int32_t>(begin));
      segment->set_prompt(true);
      segment->set_state_in(begin == 0 ? -1 : 0);
      segment->set_state_out(0);
      uint32_t id = static_cast<uint32_t>(begin) + 12345;
      for (int64_t i = 0; i < rows; ++i) {
        id = id * 1664525 + 1013904223;
        segment->add_tokens(static_cast<int32_t>(
            (id >> 8) % static_cast<uint32_t>(rank_.config().vocab_size)));
      }
      if (!last) continue;
      v1::Sample* const sample = group.add_samples();
      sample->set_row(static_cast<int32_t>(rows - 1));
      sample->set_sequence(0);
      sample->set_position(static_cast<int32_t>(begin + rows));
    }
    return rank_.engine().Step(plan).status();
  }

  // What one decode step has to move on this rank: weights once, the experts
  // that so many rows touch if they choose evenly, states both ways, KV.
  double BytesPerStep(int batch) const {
    const ModelConfig& config = rank_.config();
    const ModelWeights& weights = rank_.weights().weights();
    const double rows = batch * rank_.mesh().dp();
    double bytes = static_cast<double>(BytesOf(weights.lm_head));
    for (int i = 0; i < config.num_hidden_layers; ++i) {
      const LayerWeights& layer = weights.layers[i];
      bytes += BytesOf(layer.attention.query_key_value) +
               BytesOf(layer.attention.dense) + BytesOf(layer.attention.g_proj);
      if (config.IsDenseLayer(i)) {
        bytes += BytesOf(layer.dense_mlp);
      } else {
        const double untouched =
            std::pow(1 - static_cast<double>(config.num_experts_per_tok) /
                             config.num_experts,
                     rows);
        bytes +=
            BytesOf(layer.moe.router) + BytesOf(layer.moe.shared_expert_slice);
        if (!layer.moe.experts.empty()) {
          bytes += (1 - untouched) * layer.moe.experts.size() *
                   BytesOf(layer.moe.experts[0]);
        }
      }
      if (config.IsSoftmaxLayer(i)) {
        bytes += 2.0 * batch * flags_.bench_context *
                 rank_.mesh().kv_heads().size() * config.head_dim *
                 SizeOf(rank_.engine().cache().kv_dtype());
      } else {
        bytes += 2.0 * batch * rank_.mesh().heads().size() * config.head_dim *
                 config.head_dim * sizeof(float);
      }
    }
    return bytes;
  }

  void Print(const std::string& what, const std::vector<double>& seconds,
             int64_t tokens, double bytes) {
    if (!speaks()) return;
    const double median = Median(seconds);
    const double fastest = *std::min_element(seconds.begin(), seconds.end());
    std::printf("%-24s %10.3f %10.3f %10.1f", what.c_str(), median * 1e3,
                fastest * 1e3, tokens / median);
    if (bytes > 0) {
      std::printf(" %9.2f %7.1f%%", bytes * 1e-9,
                  100 * bytes / median / copy_rate_);
    }
    std::printf("\n");
    std::fflush(stdout);
  }

  const WorkerFlags& flags_;
  Rank& rank_;
  Progress* const progress_;  // ticks where a CPU works for long
  double copy_rate_ = 0;      // bytes/s, read and written
  int64_t next_step_ = 0;
};

}  // namespace

absl::Status CheckBench(const WorkerFlags& flags,
                        const Engine::Options& engine) {
  const int64_t last = FinalTokens(flags);
  if (!flags.bench_batches.empty() && last > engine.max_context) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--bench-context ", flags.bench_context, " and ",
        kWarmSteps + kTimedSteps, " steps make sequences of ", last,
        " tokens, longer than --max-context allows: ", engine.max_context));
  }
  for (const int64_t batch : flags.bench_batches) {
    const int64_t pages = batch * PagesOfDecode(flags);
    if (batch <= engine.max_sequences && pages <= engine.num_pages) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("--bench-batches ", batch, ": sequences of ", last,
                     " tokens need ", pages * kPageTokens, " --kv-tokens and ",
                     batch, " --max-sequences; there are ", flags.kv_tokens,
                     " and ", engine.max_sequences));
  }
  for (const int64_t tokens : flags.bench_prompts) {
    if (tokens >= engine.max_context) {
      return absl::InvalidArgumentError(
          absl::StrCat("--bench-prompts ", tokens,
                       ": with the token that is sampled longer "
                       "than --max-context allows: ",
                       engine.max_context));
    }
    if (PagesOfPrompt(tokens) > engine.num_pages) {
      return absl::InvalidArgumentError(absl::StrCat("--bench-prompts ", tokens,
                                                     ": --kv-tokens hold only ",
                                                     flags.kv_tokens));
    }
  }
  return absl::OkStatus();
}

absl::Status RunBench(const WorkerFlags& flags, Rank* rank,
                      Progress* progress) {
  return Bench(flags, rank, progress).Run();
}

}  // namespace ring
