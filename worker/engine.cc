#include "worker/engine.h"

#include <algorithm>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"
#include "kernels/elementwise/scatter.h"
#include "kernels/paged_attention/paged_attention.h"
#include "parallel/mesh.h"
#include "ring/v1/plan.pb.h"
#include "worker/decode_bucket.h"
#include "worker/plan_rows.h"

namespace ring {
namespace {

// Of all groups, so that ranks which record do it in the same step.
Sampler::Mode ModeOf(const v1::BatchPlan& plan) {
  std::vector<SamplingRow> rows;
  bool adjust = false;
  for (const v1::GroupPlan& group : plan.groups()) {
    for (const v1::Sample& sample : group.samples()) {
      rows.push_back(SamplingRowOf(sample));
      adjust = adjust || sample.has_adjustment();
    }
  }
  Sampler::Mode mode = Sampler::ModeOf(rows);
  mode.adjust = adjust;
  return mode;
}

// Names the ops of a decode-only step: all their host values.
int64_t RecordingOf(int64_t rows, const Sampler::DrawArgs& draw) {
  const Sampler::Mode& mode = draw.mode;
  const int64_t flags = int64_t{mode.random} | int64_t{mode.top_k} << 1 |
                        int64_t{mode.top_p} << 2 | int64_t{mode.adjust} << 3 |
                        int64_t{mode.report} << 4 |
                        int64_t{draw.num_rows > 0} << 5;
  return int64_t{draw.num_token_ids} << 32 | rows << 6 | flags;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const Parts& parts,
                                                       const Options& options) {
  std::unique_ptr<Engine> engine(new Engine(parts, options));
  Backend* const backend = parts.backend;
  RING_ASSIGN_OR_RETURN(engine->cache_,
                        CachePool::Create(*parts.config, *parts.mesh,
                                          {options.max_sequences,
                                           options.num_pages, options.kv_dtype},
                                          backend));
  constexpr int64_t kInt = sizeof(int32_t);
  const int64_t max_pages =
      (options.max_context + kPageTokens - 1) / kPageTokens;
  RING_ASSIGN_OR_RETURN(
      engine->page_table_,
      backend->Allocate(options.max_sequences * max_pages * kInt));
  PlanBuffer::Limits plan;
  // Decode-only steps may be padded.
  const int64_t max_decodes = DecodeBucket(options.max_sequences);
  const int64_t max_samples = max_decodes + kMaxScoredRows;
  plan.max_rows = options.max_batch_tokens;
  plan.max_samples = max_samples;
  plan.max_pages = max_pages;
  plan.data_parallel = parts.mesh->dp();
  plan.stream_all_rows = options.deterministic;
  plan.page_table = static_cast<int32_t*>(engine->page_table_->data());
  RING_ASSIGN_OR_RETURN(engine->plan_, PlanBuffer::Create(plan, backend));
  plan.max_rows = max_decodes;
  plan.max_samples = max_decodes;
  RING_ASSIGN_OR_RETURN(engine->decode_plan_,
                        PlanBuffer::Create(plan, backend));
  HybridModel::Parts model_parts;
  model_parts.config = parts.config;
  model_parts.weights = parts.weights;
  model_parts.mesh = parts.mesh;
  model_parts.placement = parts.placement;
  model_parts.tp = parts.tp;
  model_parts.dp = parts.dp;
  model_parts.world = parts.world;
  model_parts.backend = backend;
  model_parts.cache = engine->cache_.get();
  model_parts.progress = parts.progress;
  RING_ASSIGN_OR_RETURN(
      engine->model_,
      HybridModel::Create(model_parts,
                          {std::max(options.max_batch_tokens, max_decodes),
                           max_samples, options.activation_dtype}));
  Sampler::Options sampling;
  sampling.max_rows = max_samples;
  sampling.max_sequences = options.max_sequences;
  sampling.vocab_begin = static_cast<int32_t>(parts.mesh->vocab().begin);
  sampling.local_vocab = parts.mesh->vocab().size();
  RING_ASSIGN_OR_RETURN(engine->sampler_,
                        Sampler::Create(sampling, backend, parts.tp));
  RING_ASSIGN_OR_RETURN(engine->last_tokens_,
                        backend->Allocate(options.max_sequences * kInt));
  RING_ASSIGN_OR_RETURN(engine->sampled_,
                        backend->Allocate(max_samples * kInt));
  return engine;
}

absl::StatusOr<v1::StepResult> Engine::Step(const v1::BatchPlan& plan) {
  RING_CHECK(in_flight_.empty());
  RING_RETURN_IF_ERROR(Enqueue(plan));
  return Collect();
}

absl::Status Engine::Enqueue(const v1::BatchPlan& plan) {
  const int group_index = parts_.mesh->dp_rank();
  const v1::GroupPlan& group = plan.groups(group_index);
  const bool replicated = plan.exchange() == v1::BatchPlan::REPLICATED;
  PlanBuffer& buffer = plan.decode_only() ? *decode_plan_ : *plan_;
  RING_ASSIGN_OR_RETURN(
      const StepInputs inputs,
      buffer.Load(plan, group_index,
                  replicated ? plan.padded_rows() : RowsOf(group)));

  parts_.progress->EnterStep(plan.step(), inputs.rows);
  StartAdjustments(group);
  CountKnownTokens(group, inputs);
  for (const v1::CacheCopy& copy : group.adjustment_copies()) {
    sampler_->CopySequence(copy.from(), copy.to());
  }

  auto* const last_tokens = static_cast<int32_t*>(last_tokens_->data());
  Sampler::DrawArgs draw;
  draw.logits = model_->logits();
  draw.rows = inputs.sampling;
  draw.adjustments = inputs.adjustments;
  draw.sequences = inputs.sample_sequences;
  draw.num_rows = inputs.num_samples;
  draw.mode = ModeOf(plan);
  draw.num_token_ids = plan.num_token_ids();
  draw.ids = static_cast<int32_t*>(sampled_->data());
  const bool recorded = plan.decode_only() && !model_->is_observed();
  parts_.backend->RunStep(recorded ? RecordingOf(inputs.rows, draw) : 0, [&] {
    model_->Forward(
        inputs, replicated ? MoeExchange::kReplicated : MoeExchange::kAllToAll,
        last_tokens);
    sampler_->Draw(draw);
    parts_.backend->ScatterInts(
        {inputs.sample_sequences, draw.ids, inputs.num_samples, last_tokens});
  });
  for (const v1::CacheCopy& copy : group.state_copies()) {
    cache_->CopySlot(copy.from(), copy.to());
  }
  for (const v1::CacheCopy& copy : group.page_copies()) {
    cache_->CopyPage(copy.from(), copy.to());
  }
  if (observer_) observer_(plan, model_->logits());

  in_flight_.emplace_back();
  SentStep& sent = in_flight_.back();
  sent.tokens.resize(group.samples_size());
  sampler_->Read(absl::MakeSpan(sent.tokens));
  if (draw.mode.report) {
    sent.top.resize(sent.tokens.size() * kMaxTopLogits);
    sampler_->ReadTop(absl::MakeSpan(sent.top));
  }
  sent.done = parts_.backend->Mark();
  return absl::OkStatus();
}

void Engine::StartAdjustments(const v1::GroupPlan& group) {
  for (const v1::AdjustmentStart& start : group.adjustment_starts()) {
    std::vector<LogitEdit> edits;
    for (int i = 0; i < start.edit_ids_size(); ++i) {
      edits.push_back({start.edit_ids(i), start.edit_biases(i)});
    }
    sampler_->StartSequence(start.sequence(), start.counts(), edits);
  }
}

// Not part of a recording: the segments differ from step to step.
void Engine::CountKnownTokens(const v1::GroupPlan& group,
                              const StepInputs& inputs) {
  int64_t row = 0;
  for (const v1::Segment& segment : group.segments()) {
    const int64_t count = segment.tokens_size();
    if (segment.counted_prompt() > 0) {
      const int64_t prompt = std::clamp<int64_t>(
          segment.counted_prompt() - segment.position(), 0, count);
      sampler_->Count(inputs.tokens + row, inputs.token_slots + row, prompt,
                      /*prompt=*/true);
      sampler_->Count(inputs.tokens + row + prompt,
                      inputs.token_slots + row + prompt, count - prompt,
                      /*prompt=*/false);
    }
    row += count;
  }
}

v1::StepResult Engine::Collect() {
  RING_CHECK(!in_flight_.empty());
  const SentStep& sent = in_flight_.front();
  parts_.backend->WaitUntil(sent.done);
  v1::StepResult result;
  for (size_t i = 0; i < sent.tokens.size(); ++i) {
    v1::SampleResult* const drawn = result.add_samples();
    drawn->set_token(sent.tokens[i].id);
    drawn->set_logprob(sent.tokens[i].logprob);
    if (sent.top.empty()) continue;
    for (size_t k = 0; k < kMaxTopLogits; ++k) {
      const TopLogit& top = sent.top[i * kMaxTopLogits + k];
      if (top.id < 0) break;
      drawn->add_top_ids(top.id);
      drawn->add_top_logprobs(top.value);
    }
  }
  in_flight_.pop_front();
  return result;
}

}  // namespace ring
