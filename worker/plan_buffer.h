// A step's plan as the ops read it: one device buffer with fixed addresses.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/sampling/logit_adjustment.h"
#include "kernels/sampling/sampling.h"
#include "worker/model/step_inputs.h"

namespace ring {

namespace v1 {
class BatchPlan;
class GroupPlan;
class Sample;
}  // namespace v1

SamplingRow SamplingRowOf(const v1::Sample& sample);
LogitAdjustment LogitAdjustmentOf(const v1::Sample& sample);

// Confined to the engine thread.
class PlanBuffer {
 public:
  struct Limits {
    // Of one group's step, padding included.
    int64_t max_rows = 0;
    int64_t max_samples = 0;
    int64_t max_pages = 0;  // of one sequence
    int data_parallel = 1;  // groups
    // Prompt rows too take the products whose bits do not depend on other rows.
    bool stream_all_rows = false;
    // Device table that page entries are scattered into, borrowed.
    int32_t* page_table = nullptr;  // [sequences, max_pages]
  };

  static absl::StatusOr<std::unique_ptr<PlanBuffer>> Create(
      const Limits& limits, Backend* backend);

  // Lays the plan of group `group` out and copies it to the device in one
  // copy. `padded_rows` >= the group's real rows. A decode_only plan is padded
  // throughout: segments, page entries and, if there are any, samples are
  // padded_rows too, so that the host values of the inputs follow from that
  // number. INTERNAL if the plan breaks a limit: it names which. The returned
  // inputs are valid until the next Load.
  absl::StatusOr<StepInputs> Load(const v1::BatchPlan& plan, int group,
                                  int64_t padded_rows);

 private:
  // One int32 array within the buffer.
  struct Field {
    int64_t offset = 0;  // elements
    int64_t capacity = 0;
  };

  PlanBuffer(const Limits& limits, Backend* backend);
  // Fills up to `padded_rows` entries of everything that a segment, a sample
  // or a page can have.
  void PadDecodeOnly(const v1::GroupPlan& group, int64_t padded_rows);
  int32_t* Host(const Field& field) { return host_.data() + field.offset; }
  const int32_t* Device(const Field& field) const;
  Field Reserve(int64_t capacity);

  const Limits limits_;
  Backend* const backend_;
  int64_t size_ = 0;  // elements
  Field tokens_, token_slots_, positions_;
  Field row_begin_, row_count_, position_, state_in_, state_out_, page_row_;
  Field sample_rows_, sample_sequences_;
  Field sampling_;     // SamplingRow each
  Field adjustments_;  // LogitAdjustment each
  Field page_index_, page_values_;
  Field row_valid_;
  std::vector<int32_t> host_;
  std::unique_ptr<DeviceBuffer> device_;
};

}  // namespace ring
