#include "worker/plan_buffer.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "ring/v1/plan.pb.h"
#include "worker/plan_rows.h"

namespace ring {
namespace {

// Elements of the buffer that a struct takes.
template <typename T>
constexpr int64_t IntsOf() {
  static_assert(sizeof(T) % sizeof(int32_t) == 0);
  static_assert(alignof(T) <= 64);
  return sizeof(T) / sizeof(int32_t);
}

// Makes `value` the i-th of the structs at `to`.
template <typename T>
void Put(const T& value, int64_t i, int32_t* to) {
  std::memcpy(to + i * IntsOf<T>(), &value, sizeof(T));
}

absl::Status CheckLimit(int64_t value, int64_t limit, const char* what) {
  if (value <= limit) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("plan has ", value, " ", what, ", the limit is ", limit));
}

}  // namespace

SamplingRow SamplingRowOf(const v1::Sample& sample) {
  SamplingRow row;
  row.temperature = sample.temperature();
  row.top_k = sample.top_k();
  row.top_p = sample.top_p();
  row.min_p = sample.min_p();
  row.seed = sample.seed();
  row.position = sample.position();
  row.num_top = sample.num_top();
  if (sample.has_given()) row.given = sample.given();
  return row;
}

LogitAdjustment LogitAdjustmentOf(const v1::Sample& sample) {
  LogitAdjustment row;
  if (!sample.has_adjustment()) return row;
  row.sequence = sample.sequence();
  row.repetition_penalty = sample.adjustment().repetition_penalty();
  row.presence_penalty = sample.adjustment().presence_penalty();
  row.frequency_penalty = sample.adjustment().frequency_penalty();
  row.num_edits = sample.adjustment().num_edits();
  return row;
}

PlanBuffer::Field PlanBuffer::Reserve(int64_t capacity) {
  // 16 elements = 64 bytes keeps every array on a cache line of its own.
  const Field field{size_, capacity};
  size_ += (capacity + 15) / 16 * 16;
  return field;
}

PlanBuffer::PlanBuffer(const Limits& limits, Backend* backend)
    : limits_(limits), backend_(backend) {
  const int64_t rows = limits.max_rows;
  tokens_ = Reserve(rows);
  token_slots_ = Reserve(rows);
  positions_ = Reserve(rows);
  for (Field* field : {&row_begin_, &row_count_, &position_, &state_in_,
                       &state_out_, &page_row_}) {
    *field = Reserve(rows);  // a segment has at least one row
  }
  const int64_t samples = limits.max_samples;
  sample_rows_ = Reserve(samples);
  sample_sequences_ = Reserve(samples);
  sampling_ = Reserve(samples * IntsOf<SamplingRow>());
  adjustments_ = Reserve(samples * IntsOf<LogitAdjustment>());
  // A row can open one page, for one sequence of each sample too where several
  // begin with the same prompt; and a sequence that comes back can bring all.
  const int64_t entries = rows + samples + limits.max_pages;
  page_index_ = Reserve(entries);
  page_values_ = Reserve(entries);
  row_valid_ = Reserve(rows * limits.data_parallel);
  host_.resize(size_);
}

absl::StatusOr<std::unique_ptr<PlanBuffer>> PlanBuffer::Create(
    const Limits& limits, Backend* backend) {
  std::unique_ptr<PlanBuffer> buffer(new PlanBuffer(limits, backend));
  constexpr int64_t kElement = sizeof(int32_t);
  RING_ASSIGN_OR_RETURN(buffer->device_,
                        backend->Allocate(buffer->size_ * kElement));
  return buffer;
}

const int32_t* PlanBuffer::Device(const Field& field) const {
  return static_cast<const int32_t*>(device_->data()) + field.offset;
}

absl::StatusOr<StepInputs> PlanBuffer::Load(const v1::BatchPlan& plan,
                                            int group_index,
                                            int64_t padded_rows) {
  const v1::GroupPlan& group = plan.groups(group_index);
  RING_RETURN_IF_ERROR(CheckLimit(padded_rows, limits_.max_rows, "rows"));
  RING_RETURN_IF_ERROR(CheckLimit(RowsOf(group), padded_rows, "rows"));
  RING_RETURN_IF_ERROR(
      CheckLimit(group.samples_size(), sample_rows_.capacity, "samples"));
  RING_RETURN_IF_ERROR(CheckLimit(group.page_entries_size(),
                                  page_index_.capacity, "page entries"));

  StepInputs inputs;
  int64_t row = 0;
  int segment_index = 0;
  for (const v1::Segment& segment : group.segments()) {
    const int count = segment.tokens_size();
    Host(row_begin_)[segment_index] = static_cast<int32_t>(row);
    Host(row_count_)[segment_index] = count;
    Host(position_)[segment_index] = segment.position();
    Host(state_in_)[segment_index] = segment.state_in();
    Host(state_out_)[segment_index] = segment.state_out();
    Host(page_row_)[segment_index] = segment.sequence();
    for (int i = 0; i < count; ++i, ++row) {
      Host(tokens_)[row] = segment.tokens(i);
      Host(token_slots_)[row] = segment.sequence();
      Host(positions_)[row] = segment.position() + i;
    }
    ++segment_index;
    if (!segment.prompt()) {
      inputs.streamed_rows = row;
      inputs.segments.num_decode_segments = segment_index;
    }
  }
  for (; row < padded_rows; ++row) {
    Host(tokens_)[row] = -1;
    Host(token_slots_)[row] = -1;
    Host(positions_)[row] = 0;
  }
  for (int i = 0; i < group.samples_size(); ++i) {
    Host(sample_rows_)[i] = group.samples(i).row();
    Host(sample_sequences_)[i] = group.samples(i).sequence();
    Put(SamplingRowOf(group.samples(i)), i, Host(sampling_));
    Put(LogitAdjustmentOf(group.samples(i)), i, Host(adjustments_));
  }
  for (int i = 0; i < group.page_entries_size(); ++i) {
    const v1::PageEntry& entry = group.page_entries(i);
    Host(page_index_)[i] = static_cast<int32_t>(
        entry.sequence() * limits_.max_pages + entry.index());
    Host(page_values_)[i] = entry.page();
  }
  if (plan.exchange() == v1::BatchPlan::REPLICATED) {
    for (int g = 0; g < plan.groups_size(); ++g) {
      const int64_t real = RowsOf(plan.groups(g));
      for (int64_t i = 0; i < padded_rows; ++i) {
        Host(row_valid_)[g * padded_rows + i] = i < real ? 1 : 0;
      }
    }
  }
  if (plan.decode_only()) PadDecodeOnly(group, padded_rows);
  backend_->CopyToDevice(device_->data(), host_.data(),
                         size_ * static_cast<int64_t>(sizeof(int32_t)));

  inputs.rows = padded_rows;
  inputs.num_samples = group.samples_size();
  inputs.tokens = Device(tokens_);
  inputs.token_slots = Device(token_slots_);
  inputs.positions = Device(positions_);
  inputs.segments.num_segments = segment_index;
  inputs.segments.row_begin = Device(row_begin_);
  inputs.segments.row_count = Device(row_count_);
  inputs.segments.position = Device(position_);
  inputs.segments.state_in = Device(state_in_);
  inputs.segments.state_out = Device(state_out_);
  inputs.segments.page_row = Device(page_row_);
  inputs.segments.page_table = limits_.page_table;
  inputs.segments.page_stride = limits_.max_pages;
  inputs.sample_rows = Device(sample_rows_);
  inputs.sample_sequences = Device(sample_sequences_);
  inputs.sampling = reinterpret_cast<const SamplingRow*>(Device(sampling_));
  inputs.adjustments =
      reinterpret_cast<const LogitAdjustment*>(Device(adjustments_));
  inputs.page_index = Device(page_index_);
  inputs.page_values = Device(page_values_);
  inputs.num_page_entries = group.page_entries_size();
  inputs.row_valid = Device(row_valid_);
  if (plan.decode_only()) {
    inputs.streamed_rows = padded_rows;
    inputs.segments.num_segments = static_cast<int>(padded_rows);
    inputs.segments.num_decode_segments = static_cast<int>(padded_rows);
    if (inputs.num_samples > 0) {
      inputs.num_samples = static_cast<int>(padded_rows);
    }
    inputs.num_page_entries = padded_rows;
  }
  if (limits_.stream_all_rows) inputs.streamed_rows = padded_rows;
  return inputs;
}

void PlanBuffer::PadDecodeOnly(const v1::GroupPlan& group,
                               int64_t padded_rows) {
  const auto fill = [&](const Field& field, int64_t begin, int32_t value) {
    std::fill(Host(field) + begin, Host(field) + padded_rows, value);
  };
  const int64_t segments = group.segments_size();
  fill(row_begin_, segments, 0);
  fill(row_count_, segments, 0);
  fill(position_, segments, 0);
  fill(state_in_, segments, -1);
  fill(state_out_, segments, -1);
  fill(page_row_, segments, 0);
  const int64_t samples = group.samples_size();
  fill(sample_rows_, samples, -1);
  fill(sample_sequences_, samples, -1);
  for (int64_t i = samples; i < padded_rows; ++i) {
    Put(SamplingRow(), i, Host(sampling_));
    Put(LogitAdjustment(), i, Host(adjustments_));
  }
  fill(page_index_, group.page_entries_size(), -1);
}

}  // namespace ring
