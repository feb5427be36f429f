// Draws the step's tokens from logits whose vocabulary is sliced over tp.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/sampling/logit_adjustment.h"
#include "kernels/sampling/sampling.h"
#include "kernels/sampling/top_logits.h"
#include "parallel/communicator.h"

namespace ring {

// Greedy or Gumbel-max sampling with temperature, top-k, top-p and min-p, of
// logits that biases and penalties may have changed; the contracts of the
// arithmetic are in kernels/sampling/. Tokens do not depend on how the
// vocabulary is sliced, nor on the other rows.
//
// For adjustments it keeps, of each sequence, the number of times that each id
// of this rank has occurred; and a second copy of the logits: 4 bytes times
// local_vocab for each of max_sequences and of max_rows, 9 KB more a sequence.
//
// All ranks of `tp` call Draw with the same rows. The collectives it makes
// depend on the mode alone: 1 gather if all rows are greedy, else 2, and 4
// more for top-k and for top-p each if any row uses it, 1 for the likeliest ids
// if any row reports them; none without rows.
// Confined to the engine thread.
class Sampler {
 public:
  struct Options {
    int64_t max_rows = 0;       // of one call
    int32_t vocab_begin = 0;    // first id of this rank's slice
    int64_t local_vocab = 0;    // columns of the logits
    int64_t max_sequences = 0;  // whose logits may be adjusted
  };

  // Allocates all it needs. `backend` and `tp` are borrowed and outlive the
  // sampler. RESOURCE_EXHAUSTED if the buffers do not fit the device.
  static absl::StatusOr<std::unique_ptr<Sampler>> Create(const Options& options,
                                                         Backend* backend,
                                                         Communicator* tp);

  // What the rows of a step ask for, which decides on the collectives.
  struct Mode {
    bool random = false;  // some row is not greedy
    bool top_k = false;   // some row uses it
    bool top_p = false;
    bool report = false;  // some row reports its likeliest ids
    bool adjust = false;  // some row has an adjustment
    bool operator==(const Mode&) const = default;
  };
  // Without `adjust`, which is not the rows' to say.
  static Mode ModeOf(absl::Span<const SamplingRow> rows);

  // Queues the beginning of a sequence whose logits will be adjusted: what was
  // counted for it is forgotten (if `counts`), its list of edits is replaced.
  // At most kMaxLogitEdits. No step that is in flight may read the old ones.
  void StartSequence(int32_t sequence, bool counts,
                     absl::Span<const LogitEdit> edits);
  // Queues the beginning of `to` as a copy of `from`: its counts and edits.
  void CopySequence(int32_t from, int32_t to);
  // Queues the counting of tokens that were given, not drawn: `count` ids and
  // their sequences, on the device.
  void Count(const int32_t* tokens, const int32_t* sequences, int64_t count,
             bool prompt);

  // Queues the draw of one token a row. All pointers are the device's.
  struct DrawArgs {
    const float* logits = nullptr;      // [rows, local_vocab]
    const SamplingRow* rows = nullptr;  // [num_rows]
    int64_t num_rows = 0;               // at most max_rows
    // [num_rows] Read if the mode says so; the drawn tokens are then counted.
    const LogitAdjustment* adjustments = nullptr;
    const int32_t* sequences = nullptr;  // [num_rows] of the rows; -1: none
    Mode mode;                           // covers the rows
    int32_t num_token_ids = 0;           // ids from here on are never drawn
    int32_t* ids = nullptr;              // [num_rows] out, the tokens' ids
  };
  void Draw(const DrawArgs& args);

  // Queues the copy of the first tokens.size() tokens of the last Draw to the
  // host; there after Backend::Synchronize. Id -1 marks a row whose logits are
  // no numbers, which the engine answers for.
  void Read(absl::Span<SampledToken> tokens);
  // The same for the likeliest ids of the rows, kMaxTopLogits entries each. Of
  // no meaning unless the mode said `report`.
  void ReadTop(absl::Span<TopLogit> top);

 private:
  Sampler(const Options& options, Backend* backend, Communicator* tp)
      : options_(options), backend_(backend), tp_(tp) {}

  // Finds the likeliest ids of the rows that report them.
  void RankLogits(const DrawArgs& args, const RowStats* raw_stats);
  // Finds the threshold of one filter in rounds of 8 key bits.
  void Narrow(const LogitsSlice& slice, const SamplingRow* rows,
              ThresholdKind kind);

  const Options options_;
  Backend* const backend_;
  Communicator* const tp_;

  // Device, each of max_rows entries a rank where ranks are gathered.
  std::unique_ptr<DeviceBuffer> part_;      // what this rank sends
  std::unique_ptr<DeviceBuffer> gathered_;  // [ranks] of that
  // Twice the rows: of the logits to draw from, then of the raw ones.
  std::unique_ptr<DeviceBuffer> stats_;       // RowStats [2, rows]
  std::unique_ptr<DeviceBuffer> thresholds_;  // Threshold [2, rows]
  std::unique_ptr<DeviceBuffer> tokens_;      // SampledToken [rows]
  std::unique_ptr<DeviceBuffer> top_;         // TopLogit [rows, kMaxTopLogits]

  // Of sequences with adjustments.
  std::unique_ptr<DeviceBuffer> adjusted_;     // float [rows, local_vocab]
  std::unique_ptr<DeviceBuffer> occurrences_;  // [sequences, local_vocab]
  std::unique_ptr<DeviceBuffer> edits_;        // [sequences, kMaxLogitEdits]
  std::vector<LogitEdit> host_edits_;          // the same, to copy from
};

}  // namespace ring
