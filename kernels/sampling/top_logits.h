// The likeliest ids of a row, from logits whose vocabulary is sliced over
// ranks:
//
//   TopLogits -> gather -> MergeTopLogits
//
// A rank's slice gives its own largest logits, so that no more than those of
// every rank are gathered. Ids of equal logit come in ascending order; neither
// the slicing nor the device changes an id.
#pragma once

#include <cstdint>

#include "kernels/sampling/sampling.h"

namespace ring {

class ThreadPool;

// Most that a row may ask for (SamplingRow.num_top).
inline constexpr int kMaxTopLogits = 20;

struct TopLogit {
  int32_t id = -1;  // -1: none
  float value = 0;  // raw logit; merged: ln softmax(raw logits)[id]
};

// A row's first num_top entries are its largest logits in descending order, ids
// of logit -inf and those that are never drawn not among them; all entries
// after the last one are of no id. Rows with a NaN have any.
struct TopLogitsArgs {
  LogitsSlice slice;                    // of raw logits; `raw` is not read
  const SamplingRow* params = nullptr;  // [rows]
  TopLogit* top = nullptr;              // [rows, kMaxTopLogits]
};
// The same of all slices together. Rows from which no token can be drawn have
// no ids.
struct MergeTopLogitsArgs {
  const TopLogit* parts = nullptr;  // [ranks, rows, kMaxTopLogits]
  int ranks = 1;
  int64_t rows = 0;
  const SamplingRow* params = nullptr;  // [rows]
  const RowStats* stats = nullptr;      // [rows], merged, of the raw logits
  TopLogit* top = nullptr;              // [rows, kMaxTopLogits]
};

namespace cpu {
void TopLogits(const TopLogitsArgs& args, ThreadPool* pool);
void MergeTopLogits(const MergeTopLogitsArgs& args, ThreadPool* pool);
}  // namespace cpu
namespace cuda {
class Stream;
void TopLogits(const TopLogitsArgs& args, Stream* stream);
void MergeTopLogits(const MergeTopLogitsArgs& args, Stream* stream);
}  // namespace cuda

}  // namespace ring
