#include "worker/model/residual_stream.h"

#include "kernels/base/status_macros.h"
#include "kernels/norm/residual_norm.h"
#include "parallel/mesh.h"

namespace ring {

absl::StatusOr<std::unique_ptr<ResidualStream>> ResidualStream::Create(
    const Options& options, const Mesh& mesh, Communicator* tp,
    Backend* backend) {
  std::unique_ptr<ResidualStream> stream(
      new ResidualStream(options, mesh, tp, backend));
  const int64_t slice = (options.max_rows + mesh.tp() - 1) / mesh.tp();
  const int64_t cells = slice * mesh.tp() * options.hidden_size;
  RING_ASSIGN_OR_RETURN(
      stream->residual_buffer_,
      backend->Allocate(cells * static_cast<int64_t>(sizeof(float))));
  RING_ASSIGN_OR_RETURN(
      stream->normed_buffer_,
      backend->Allocate(
          cells * static_cast<int64_t>(SizeOf(options.activation_dtype))));
  stream->residual_ = static_cast<float*>(stream->residual_buffer_->data());
  stream->normed_ = stream->normed_buffer_->data();
  stream->keep_.resize(mesh.tp());
  return stream;
}

void ResidualStream::Begin(int64_t rows, bool sliced) {
  rows_ = rows;
  sliced_ = sliced && mesh_.tp() > 1;
  for (int rank = 0; rank < mesh_.tp(); ++rank) {
    keep_[rank] = sliced_ ? mesh_.RowSlice(rows, rank) : Range{0, rows};
  }
  own_ = keep_[mesh_.tp_rank()];
  normed_own_ = static_cast<char*>(normed_) +
                own_.begin * options_.hidden_size *
                    static_cast<int64_t>(SizeOf(options_.activation_dtype));
  backend_->Zero(residual_, own_.size() * options_.hidden_size *
                                static_cast<int64_t>(sizeof(float)));
}

void ResidualStream::AddPartial(const float* partial, const float* next_norm,
                                const GroupScale& scale) {
  if (rows_ == 0) return;
  ReduceRowsArgs args;
  args.partial = partial;
  args.rows = rows_;
  args.cols = options_.hidden_size;
  args.keep = keep_;
  args.residual = residual_;
  args.norm_weight = next_norm;
  args.norm_eps = options_.norm_eps;
  args.normed = normed_own_;
  args.normed_dtype = options_.activation_dtype;
  args.group_scale = scale;
  tp_->ReduceRows(args);
}

void ResidualStream::AddOwn(const float* addend, const float* next_norm) {
  ResidualNormArgs args;
  args.parts = addend;
  args.num_parts = 1;
  args.rows = own_.size();
  args.cols = options_.hidden_size;
  args.residual = residual_;
  args.norm_weight = next_norm;
  args.eps = options_.norm_eps;
  args.normed = normed_own_;
  args.normed_dtype = options_.activation_dtype;
  backend_->ResidualNorm(args);
}

const void* ResidualStream::GatherNormed() {
  if (!sliced_ || rows_ == 0) return normed_;
  const int64_t slice = (rows_ + mesh_.tp() - 1) / mesh_.tp();
  // Rank r's rows start at r * slice, so the own rows already lie in place; a
  // short last slice sends padding along.
  char* own = static_cast<char*>(normed_);
  const int64_t bytes = slice * options_.hidden_size *
                        static_cast<int64_t>(SizeOf(options_.activation_dtype));
  tp_->AllGather(own + mesh_.tp_rank() * bytes, normed_, bytes);
  return normed_;
}

}  // namespace ring
