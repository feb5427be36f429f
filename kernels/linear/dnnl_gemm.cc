#include "kernels/linear/dnnl_gemm.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "kernels/base/check.h"
#include "kernels/base/log.h"
#include "kernels/base/thread_pool.h"
#include "kernels/linear/scratch.h"

namespace ring {
namespace {

// The library generates code per shape. Rows are therefore cut into few sizes,
// the last piece overlapping the one before it instead of being shorter.
constexpr int64_t kRowPieces[] = {512, 256, 128, kDnnlMinRows};
// Weight rows per call, fewer where the threads would otherwise have no work.
constexpr int64_t kMaxOutputs = 256;
constexpr int64_t kMinOutputs = 64;

dnnl::memory::data_type TypeOf(DType dtype) {
  return dtype == DType::kBFloat16 ? dnnl::memory::data_type::bf16
                                   : dnnl::memory::data_type::f32;
}

// One product's shape: y [rows, outputs] = x [rows, cols] W^T.
struct Shape {
  int64_t rows;
  int64_t outputs;
  int64_t cols;
  int64_t w_stride;
  int64_t y_stride;
  DType dtype;
  DType y_dtype;

  bool operator==(const Shape& other) const {
    return rows == other.rows && outputs == other.outputs &&
           cols == other.cols && w_stride == other.w_stride &&
           y_stride == other.y_stride && dtype == other.dtype &&
           y_dtype == other.y_dtype;
  }
};

const dnnl::engine& CpuEngine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

dnnl::matmul::primitive_desc Describe(const Shape& shape) {
  using Desc = dnnl::memory::desc;
  const Desc x({shape.rows, shape.cols}, TypeOf(shape.dtype),
               dnnl::memory::dims{shape.cols, 1});
  // [cols, outputs], the transpose of how weights lie.
  const Desc w({shape.cols, shape.outputs}, TypeOf(shape.dtype),
               dnnl::memory::dims{1, shape.w_stride});
  const Desc y({shape.rows, shape.outputs}, TypeOf(shape.y_dtype),
               dnnl::memory::dims{shape.y_stride, 1});
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
#if DNNL_VERSION_MAJOR >= 3
  return {CpuEngine(), x, w, y, attributes};
#else
  return {dnnl::matmul::desc(x, w, y), attributes, CpuEngine()};
#endif
}

// A thread's generated code for one shape, with its argument slots.
class Product {
 public:
  explicit Product(const Shape& shape) : shape_(shape) {
    const dnnl::matmul::primitive_desc desc = Describe(shape);
    matmul_ = dnnl::matmul(desc);
    scratch_bytes_ = static_cast<int64_t>(desc.scratchpad_desc().get_size());
    const auto add = [&](int argument, const dnnl::memory::desc& memory) {
      arguments_.emplace(argument,
                         dnnl::memory(memory, CpuEngine(), DNNL_MEMORY_NONE));
    };
    add(DNNL_ARG_SRC, desc.src_desc());
    add(DNNL_ARG_WEIGHTS, desc.weights_desc());
    add(DNNL_ARG_DST, desc.dst_desc());
    add(DNNL_ARG_SCRATCHPAD, desc.scratchpad_desc());
  }

  const Shape& shape() const { return shape_; }

  void Run(const void* x, const void* w, void* y) {
    thread_local Scratch scratch;
    thread_local dnnl::stream stream(CpuEngine());
    Set(DNNL_ARG_SRC, const_cast<void*>(x));
    Set(DNNL_ARG_WEIGHTS, const_cast<void*>(w));
    Set(DNNL_ARG_DST, y);
    Set(DNNL_ARG_SCRATCHPAD, scratch.Get<char>(scratch_bytes_));
    matmul_.execute(stream, arguments_);
    stream.wait();
  }

 private:
  void Set(int argument, void* data) {
    arguments_.find(argument)->second.set_data_handle(data);
  }

  const Shape shape_;
  dnnl::matmul matmul_;
  int64_t scratch_bytes_ = 0;
  std::unordered_map<int, dnnl::memory> arguments_;
};

// The library's OpenMP team is per calling thread: with one thread it runs
// inline, so our pool is the only one that occupies the processors. The symbol
// is looked up since which OpenMP, if any, comes with the library differs.
void RunLibraryInline() {
  thread_local bool done = false;
  if (done) return;
  done = true;
  using SetThreads = void (*)(int);
  const auto set_threads =
      reinterpret_cast<SetThreads>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
  if (set_threads != nullptr) set_threads(1);
}

Product& ProductOf(const Shape& shape) {
  thread_local std::vector<std::unique_ptr<Product>> products;
  for (const auto& product : products) {
    if (product->shape() == shape) return *product;
  }
  products.push_back(std::make_unique<Product>(shape));
  return *products.back();
}

// Outputs [begin, end) of all rows, on the calling thread.
void MultiplyOutputs(const DnnlGemmArgs& args, int64_t begin, int64_t end) {
  RunLibraryInline();
  const WeightMatrix weight = Rows(args.weight, begin, end);
  const int64_t x_row =
      weight.cols * static_cast<int64_t>(SizeOf(weight.dtype));
  const int64_t y_element = static_cast<int64_t>(SizeOf(args.y_dtype));
  for (int64_t row = 0; row < args.rows;) {
    const int64_t rest = args.rows - row;
    int64_t rows = kDnnlMinRows;
    for (int64_t piece : kRowPieces) {
      if (piece <= rest) {
        rows = piece;
        break;
      }
    }
    const int64_t first = std::min(row, args.rows - rows);
    ProductOf({rows, end - begin, weight.cols, weight.row_stride,
               args.weight.rows, weight.dtype, args.y_dtype})
        .Run(static_cast<const char*>(args.x) + first * x_row, weight.data,
             static_cast<char*>(args.y) +
                 (first * args.weight.rows + begin) * y_element);
    row = first + rows;
  }
}

bool HasVectorCode(DType dtype) {
  try {
    const Shape shape = {kDnnlMinRows, kMinOutputs,    128, 128, kMinOutputs,
                         dtype,        DType::kFloat32};
    return !absl::StrContains(Describe(shape).impl_info_str(), "ref");
  } catch (const dnnl::error&) {
    return false;  // no implementation at all
  }
}

}  // namespace

bool DnnlGemmSupports(DType dtype) {
  static const bool f32 = HasVectorCode(DType::kFloat32);
  static const bool bf16 = HasVectorCode(DType::kBFloat16);
  return dtype == DType::kBFloat16 ? bf16 : dtype == DType::kFloat32 && f32;
}

bool DnnlGemm(const DnnlGemmArgs& args, ThreadPool* pool) {
  RING_CHECK_GE(args.rows, kDnnlMinRows);
  const int64_t share =
      args.weight.rows / (2 * pool->threads()) / kMinOutputs * kMinOutputs;
  const int64_t step = std::clamp(share, kMinOutputs, kMaxOutputs);
  const int64_t items = (args.weight.rows + step - 1) / step;
  std::atomic<bool> ok{true};
  pool->ParallelFor(items, 1, [&](int64_t begin, int64_t end) {
    try {
      for (int64_t item = begin; item < end; ++item) {
        MultiplyOutputs(args, item * step,
                        std::min((item + 1) * step, args.weight.rows));
      }
    } catch (const dnnl::error& error) {
      LogError("oneDNN matmul failed", "message", error.message, "status",
               static_cast<int>(error.status), "rows", args.rows, "cols",
               args.weight.cols);
      ok.store(false, std::memory_order_relaxed);
    }
  });
  return ok.load(std::memory_order_relaxed);
}

}  // namespace ring
