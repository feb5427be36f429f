#include "kernels/forwarding_backend.h"

namespace ring {

void ForwardingBackend::RandomWeights(const RandomWeightsArgs& args) {
  Op("RandomWeights", [&] { inner_->RandomWeights(args); });
}
void ForwardingBackend::QuantizeBlocks(const QuantizeBlocksArgs& args) {
  Op("QuantizeBlocks", [&] { inner_->QuantizeBlocks(args); });
}
void ForwardingBackend::Embedding(const EmbeddingArgs& args) {
  Op("Embedding", [&] { inner_->Embedding(args); });
}
void ForwardingBackend::GatherRows(const GatherRowsArgs& args) {
  Op("GatherRows", [&] { inner_->GatherRows(args); });
}
void ForwardingBackend::LocalExperts(const LocalExpertsArgs& args) {
  Op("LocalExperts", [&] { inner_->LocalExperts(args); });
}
void ForwardingBackend::ScatterInts(const ScatterIntsArgs& args) {
  Op("ScatterInts", [&] { inner_->ScatterInts(args); });
}
void ForwardingBackend::RopeTable(const RopeTableArgs& args) {
  Op("RopeTable", [&] { inner_->RopeTable(args); });
}
void ForwardingBackend::ResidualNorm(const ResidualNormArgs& args) {
  Op("ResidualNorm", [&] { inner_->ResidualNorm(args); });
}
void ForwardingBackend::Linear(const LinearArgs& args) {
  Op("Linear", [&] { inner_->Linear(args); });
}
void ForwardingBackend::PagedAttention(const PagedAttentionArgs& args) {
  Op("PagedAttention", [&] { inner_->PagedAttention(args); });
}
void ForwardingBackend::LightningAttention(const LightningAttentionArgs& args) {
  Op("LightningAttention", [&] { inner_->LightningAttention(args); });
}
void ForwardingBackend::MoeRouting(const MoeRoutingArgs& args) {
  Op("MoeRouting", [&] { inner_->MoeRouting(args); });
}
void ForwardingBackend::DenseFfn(const DenseFfnArgs& args) {
  Op("DenseFfn", [&] { inner_->DenseFfn(args); });
}
void ForwardingBackend::GroupedFfn(const GroupedFfnArgs& args) {
  Op("GroupedFfn", [&] { inner_->GroupedFfn(args); });
}
void ForwardingBackend::PlanCopies(const PlanCopiesArgs& args) {
  Op("PlanCopies", [&] { inner_->PlanCopies(args); });
}
void ForwardingBackend::PackCopies(const PackCopiesArgs& args) {
  Op("PackCopies", [&] { inner_->PackCopies(args); });
}
void ForwardingBackend::AddCopies(const AddCopiesArgs& args) {
  Op("AddCopies", [&] { inner_->AddCopies(args); });
}
void ForwardingBackend::AdjustLogits(const AdjustLogitsArgs& args) {
  Op("AdjustLogits", [&] { inner_->AdjustLogits(args); });
}
void ForwardingBackend::CountTokens(const CountTokensArgs& args) {
  Op("CountTokens", [&] { inner_->CountTokens(args); });
}
void ForwardingBackend::LogitStats(const LogitStatsArgs& args) {
  Op("LogitStats", [&] { inner_->LogitStats(args); });
}
void ForwardingBackend::MergeStats(const MergeStatsArgs& args) {
  Op("MergeStats", [&] { inner_->MergeStats(args); });
}
void ForwardingBackend::ThresholdHistogram(const ThresholdHistogramArgs& args) {
  Op("ThresholdHistogram", [&] { inner_->ThresholdHistogram(args); });
}
void ForwardingBackend::NarrowThreshold(const NarrowThresholdArgs& args) {
  Op("NarrowThreshold", [&] { inner_->NarrowThreshold(args); });
}
void ForwardingBackend::DrawTokens(const DrawTokensArgs& args) {
  Op("DrawTokens", [&] { inner_->DrawTokens(args); });
}
void ForwardingBackend::FinishTokens(const FinishTokensArgs& args) {
  Op("FinishTokens", [&] { inner_->FinishTokens(args); });
}
void ForwardingBackend::TopLogits(const TopLogitsArgs& args) {
  Op("TopLogits", [&] { inner_->TopLogits(args); });
}
void ForwardingBackend::MergeTopLogits(const MergeTopLogitsArgs& args) {
  Op("MergeTopLogits", [&] { inner_->MergeTopLogits(args); });
}

}  // namespace ring
