// The residual stream of one step, and how its rows lie on the ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/base/dtype.h"
#include "parallel/communicator.h"

namespace ring {

class Mesh;

// Two layouts, chosen per step:
//   whole:  every rank of the tensor-parallel group holds all rows. A sum over
//           ranks is an all-reduce. Few rows: one exchange per half layer.
//   sliced: each rank holds ceil(rows / tp) rows, the last perhaps fewer or
//           none. A sum over ranks is a reduce-scatter, and attention gathers
//           the normed rows. Many rows: half the traffic, norms done once.
//
// The stream is fp32; what layers read is `normed`, the RMS norm of the stream
// under the next half layer's weight, in the activation dtype. Each Add* is
// given that weight, so the norm is part of the sum. Confined to the engine
// thread; every call that communicates is made by all ranks of the group.
class ResidualStream {
 public:
  struct Options {
    int64_t max_rows = 0;
    int64_t hidden_size = 0;
    float norm_eps = 0;
    DType activation_dtype = DType::kBFloat16;
  };

  // `tp` and `mesh` must outlive the stream.
  static absl::StatusOr<std::unique_ptr<ResidualStream>> Create(
      const Options& options, const Mesh& mesh, Communicator* tp,
      Backend* backend);

  // Starts a step of `rows` rows with a zero stream.
  void Begin(int64_t rows, bool sliced);

  int64_t rows() const { return rows_; }
  bool sliced() const { return sliced_; }
  // The rows that this rank holds, out of rows().
  Range own_rows() const { return own_; }

  // stream += sum over the tp ranks of `partial` [rows, hidden] fp32.
  void AddPartial(const float* partial, const float* next_norm,
                  const GroupScale& scale = {});
  // stream += `addend` [own rows, hidden] fp32, this rank's own result.
  void AddOwn(const float* addend, const float* next_norm);

  // The own rows of the stream, for a reduction over another set of ranks.
  float* residual() { return residual_; }     // [own rows, hidden] fp32
  void* normed_own() { return normed_own_; }  // [own rows, hidden]

  // The normed rows of the whole group; gathers them if the stream is sliced.
  const void* GatherNormed();  // [rows, hidden]

  const Options& options() const { return options_; }

 private:
  ResidualStream(const Options& options, const Mesh& mesh, Communicator* tp,
                 Backend* backend)
      : options_(options), mesh_(mesh), tp_(tp), backend_(backend) {}

  const Options options_;
  const Mesh& mesh_;
  Communicator* const tp_;
  Backend* const backend_;

  int64_t rows_ = 0;
  bool sliced_ = false;
  Range own_;
  std::vector<Range> keep_;  // [tp] rows that each rank holds

  std::unique_ptr<DeviceBuffer> residual_buffer_;
  std::unique_ptr<DeviceBuffer> normed_buffer_;
  float* residual_ = nullptr;   // [own rows, hidden]
  void* normed_own_ = nullptr;  // within normed_, at the own rows
  void* normed_ = nullptr;      // [tp * ceil(max_rows / tp), hidden]
};

}  // namespace ring
