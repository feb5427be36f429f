#include "worker/engine.h"

#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/elementwise/scatter.h"
#include "kernels/paged_attention/paged_attention.h"
#include "parallel/mesh.h"
#include "ring/v1/plan.pb.h"

namespace ring {
namespace {

int64_t RowsOf(const v1::GroupPlan& plan) {
  int64_t rows = 0;
  for (const v1::Segment& segment : plan.segments()) {
    rows += segment.tokens_size();
  }
  return rows;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const Parts& parts,
                                                       const Options& options) {
  std::unique_ptr<Engine> engine(new Engine(parts, options));
  Backend* const backend = parts.backend;
  RING_ASSIGN_OR_RETURN(
      engine->cache_,
      CachePool::Create(
          *parts.config, *parts.mesh,
          {options.max_sequences, options.num_pages, options.kv_dtype},
          backend));
  RING_ASSIGN_OR_RETURN(
      engine->plan_buffer_,
      PlanBuffer::Create(
          {options.max_batch_tokens, options.max_sequences,
           (options.max_context + kPageTokens - 1) / kPageTokens,
           parts.mesh->dp()},
          backend));
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
                          {options.max_batch_tokens, options.max_sequences,
                           options.activation_dtype}));
  Sampler::Options sampling;
  sampling.max_rows = options.max_sequences;
  sampling.vocab_begin = static_cast<int32_t>(parts.mesh->vocab().begin);
  sampling.local_vocab = parts.mesh->vocab().size();
  RING_ASSIGN_OR_RETURN(engine->sampler_,
                        Sampler::Create(sampling, backend, parts.tp));
  constexpr int64_t kInt = sizeof(int32_t);
  RING_ASSIGN_OR_RETURN(engine->last_tokens_,
                        backend->Allocate(options.max_sequences * kInt));
  RING_ASSIGN_OR_RETURN(engine->sampled_,
                        backend->Allocate(options.max_sequences * kInt));
  return engine;
}

absl::StatusOr<v1::StepResult> Engine::Step(const v1::BatchPlan& plan) {
  const int group_index = parts_.mesh->dp_rank();
  const v1::GroupPlan& group = plan.groups(group_index);
  const bool replicated = plan.exchange() == v1::BatchPlan::REPLICATED;
  RING_ASSIGN_OR_RETURN(
      const StepInputs inputs,
      plan_buffer_->Load(plan, group_index,
                         replicated ? plan.padded_rows() : RowsOf(group)));

  parts_.progress->EnterStep(plan.step());
  for (const v1::CacheCopy& copy : group.state_copies()) {
    cache_->CopySlot(copy.from(), copy.to());
  }
  for (const v1::CacheCopy& copy : group.page_copies()) {
    cache_->CopyPage(copy.from(), copy.to());
  }

  auto* const last_tokens = static_cast<int32_t*>(last_tokens_->data());
  last_logits_ = nullptr;
  parts_.backend->RunStep(/*bucket=*/0, [&] {
    last_logits_ = model_->Forward(inputs,
                                   replicated ? MoeExchange::kReplicated
                                              : MoeExchange::kAllToAll,
                                   last_tokens);
  });
  if (observer_) observer_(plan, last_logits_);

  v1::StepResult result;
  if (inputs.num_samples == 0) return result;
  std::vector<SamplingRow> rows;
  for (const v1::Sample& sample : group.samples()) {
    SamplingRow row;
    row.temperature = sample.temperature();
    row.top_k = sample.top_k();
    row.top_p = sample.top_p();
    row.min_p = sample.min_p();
    row.seed = sample.seed();
    row.position = sample.position();
    rows.push_back(row);
  }
  std::vector<SampledToken> tokens(rows.size());
  auto* const sampled = static_cast<int32_t*>(sampled_->data());
  sampler_->Sample(last_logits_, rows, plan.num_token_ids(), tokens.data(),
                   sampled);
  parts_.backend->ScatterInts(
      {inputs.sample_sequences, sampled, inputs.num_samples, last_tokens});
  for (const SampledToken& token : tokens) {
    v1::SampleResult* const drawn = result.add_samples();
    drawn->set_token(token.id);
    drawn->set_logprob(token.logprob);
  }
  return result;
}

}  // namespace ring
