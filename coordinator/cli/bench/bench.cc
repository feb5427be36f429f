// ring bench: how fast a server answers under a load.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/cli/bench/bench_report.h"
#include "coordinator/cli/bench/load_driver.h"
#include "coordinator/cli/bench/load_plan.h"
#include "coordinator/cli/bench/svg_plot.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/connection.h"
#include "coordinator/cli/generation.h"
#include "coordinator/cli/live_text.h"
#include "kernels/base/mutex.h"
#include "kernels/base/signal_watcher.h"
#include "kernels/base/status_macros.h"
#include "kernels/base/text_file.h"
#include "proto/status.h"
#include "ring/v1/inference.grpc.pb.h"

namespace ring {
namespace {

constexpr int64_t kMaxTraceBytes = int64_t{1} << 30;
constexpr int64_t kDefaultRequests = 100;

struct Load {
  LoadResult::Kind kind;
  double value;
};

// The loads, one after the other.
std::vector<Load> LoadsOf(const BenchFlags& flags) {
  std::vector<Load> loads;
  for (const double rate : flags.rate) {
    loads.push_back({LoadResult::Kind::kRate, rate});
  }
  for (const int64_t concurrency : flags.concurrency) {
    loads.push_back(
        {LoadResult::Kind::kConcurrency, static_cast<double>(concurrency)});
  }
  if (!loads.empty()) return loads;
  if (!flags.trace.empty()) return {{LoadResult::Kind::kTrace, 0}};
  return {{LoadResult::Kind::kConcurrency, 1}};
}

absl::StatusOr<Lengths> ReadLengths(const char* flag, const std::string& text) {
  absl::StatusOr<Lengths> lengths = ParseLengths(text);
  if (lengths.ok()) return lengths;
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " ", text, ": ", lengths.status().message()));
}

// All of the plan but the rate.
absl::StatusOr<LoadPlan::Args> ReadPlan(const BenchFlags& flags) {
  LoadPlan::Args plan;
  plan.seed = flags.seed;
  RING_ASSIGN_OR_RETURN(plan.prompt,
                        ReadLengths("--prompt-tokens", flags.prompt_tokens));
  RING_ASSIGN_OR_RETURN(plan.output,
                        ReadLengths("--output-tokens", flags.output_tokens));
  if (flags.trace.empty()) return plan;
  const absl::StatusOr<std::string> text =
      ReadTextFile(flags.trace, kMaxTraceBytes);
  if (!text.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--trace: ", text.status().message()));
  }
  absl::StatusOr<std::vector<PlannedRequest>> trace = ParseTrace(*text);
  if (!trace.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--trace ", flags.trace, ": ", trace.status().message()));
  }
  plan.trace = *std::move(trace);
  return plan;
}

// Requests of each load; 0: until the time is up or the trace ends.
int64_t MaxRequests(const BenchFlags& flags) {
  if (flags.requests) return *flags.requests;
  return flags.duration_s || !flags.trace.empty() ? 0 : kDefaultRequests;
}

absl::Status CheckWarmup(const BenchFlags& flags) {
  const int64_t requests = MaxRequests(flags);
  if (requests == 0 || flags.warmup < requests) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--warmup ", flags.warmup,
                                                 " leaves none of ", requests,
                                                 " requests (--requests)"));
}

// A file for results, opened before the work that they come from.
class ResultFile {
 public:
  // An empty path: none.
  static absl::StatusOr<ResultFile> Open(const char* flag,
                                         const std::string& path) {
    ResultFile result;
    if (path.empty()) return result;
    result.file_.reset(std::fopen(path.c_str(), "w"));
    if (result.file_ != nullptr) return result;
    return absl::InvalidArgumentError(
        absl::StrCat(flag, ": cannot write ", path));
  }
  explicit operator bool() const { return file_ != nullptr; }

  absl::Status Write(const std::string& text) {
    const bool written = std::fputs(text.c_str(), file_.get()) >= 0 &&
                         std::fflush(file_.get()) == 0;
    if (written) return absl::OkStatus();
    return absl::FailedPreconditionError("a file of results takes no more");
  }

 private:
  struct Closer {
    void operator()(FILE* file) const { std::fclose(file); }
  };
  std::unique_ptr<FILE, Closer> file_;
};

// Ids of ordinary tokens: those of random words, as the server's tokenizer has
// them. Ids at random could be control tokens, or mean nothing.
absl::StatusOr<std::vector<int32_t>> OrdinaryIds(uint64_t seed,
                                                 grpc::ClientContext* context,
                                                 v1::Inference::Stub* stub) {
  constexpr int kWords = 16384;
  std::mt19937_64 random(seed);
  std::uniform_int_distribution<int> length(1, 8);
  std::uniform_int_distribution<int> letter('a', 'z');
  v1::TokenizeRequest request;
  std::string* const text = request.mutable_text();
  for (int i = 0; i < kWords; ++i) {
    if (i > 0) text->push_back(' ');
    for (int n = length(random); n > 0; --n) {
      text->push_back(static_cast<char>(letter(random)));
    }
  }
  request.set_parse_special(false);
  v1::TokenizeResponse response;
  RING_RETURN_IF_ERROR(
      FromGrpcStatus(stub->Tokenize(context, request, &response)));
  std::vector<int32_t> ids(response.token_ids().begin(),
                           response.token_ids().end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  if (!ids.empty()) return ids;
  return absl::InternalError("the server's tokenizer makes no tokens of text");
}

std::string ProgressText(const std::string& load,
                         const LoadDriver::Progress& progress) {
  return absl::StrFormat(
      "%s: %.0f s, %d running, %d finished, %d failed, %.0f tokens/s\n", load,
      progress.seconds, progress.running, progress.finished, progress.failed,
      progress.seconds > 0
          ? static_cast<double>(progress.tokens) / progress.seconds
          : 0.0);
}

// Runs one load after the other until all are done or it is stopped.
class Bench {
 public:
  Bench(const BenchFlags& flags, const Connection& connection,
        LoadPlan::Args plan)
      : flags_(flags), connection_(connection), plan_(std::move(plan)) {}

  absl::Status Run() {
    const auto stub = v1::Inference::NewStub(Connect(connection_));
    SetDeadline(connection_, &tokenize_);
    RING_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                          OrdinaryIds(flags_.seed, &tokenize_, stub.get()));
    for (const Load& load : LoadsOf(flags_)) {
      RunLoad(load, ids, stub.get());
      std::printf("%s", ResultText(results_.back(), Limits()).c_str());
      RING_RETURN_IF_ERROR(CheckWritten());
      MutexLock lock(&mutex_);
      if (stopped_) break;
    }
    return absl::OkStatus();
  }

  // From the thread that waits for signals.
  void Stop() {
    MutexLock lock(&mutex_);
    stopped_ = true;
    tokenize_.TryCancel();
    if (driver_ != nullptr) driver_->Stop();
  }

  const std::vector<LoadResult>& results() const { return results_; }
  bool stopped() {
    MutexLock lock(&mutex_);
    return stopped_;
  }

 private:
  LatencyLimits Limits() const {
    return {flags_.ttft_limit_ms, flags_.itl_limit_ms};
  }

  void RunLoad(const Load& load, const std::vector<int32_t>& ids,
               v1::Inference::Stub* stub) {
    LoadPlan::Args plan = plan_;
    if (load.kind == LoadResult::Kind::kRate) plan.rate = load.value;
    const bool closed = load.kind == LoadResult::Kind::kConcurrency;
    LoadDriver driver(
        {.connection = connection_,
         .stub = stub,
         .token_ids = ids,
         .concurrency = closed ? static_cast<int64_t>(load.value) : 0,
         .max_requests = MaxRequests(flags_),
         .max_seconds = flags_.duration_s.value_or(0),
         .seed = flags_.seed});
    SetDriver(&driver);
    const std::string name = LoadName(load.kind, load.value);
    LiveText screen(stderr);
    const std::vector<RequestRecord> records = driver.Run(
        LoadPlan(std::move(plan)), [&](const LoadDriver::Progress& progress) {
          screen.Show(ProgressText(name, progress));
        });
    SetDriver(nullptr);
    screen.Show("");
    results_.push_back(
        {load.kind, load.value, Summarize(records, flags_.warmup, Limits())});
  }

  void SetDriver(LoadDriver* driver) {
    MutexLock lock(&mutex_);
    driver_ = driver;
    if (driver_ != nullptr && stopped_) driver_->Stop();
  }

  const BenchFlags& flags_;
  const Connection& connection_;
  const LoadPlan::Args plan_;
  grpc::ClientContext tokenize_;  // of the one call before the loads
  std::vector<LoadResult> results_;
  Mutex mutex_;
  bool stopped_ GUARDED_BY(mutex_) = false;
  LoadDriver* driver_ GUARDED_BY(mutex_) = nullptr;  // the one that runs
};

absl::Status WriteResults(const BenchFlags& flags,
                          const std::vector<LoadResult>& results,
                          ResultFile* json_file, ResultFile* plot_file) {
  if (*json_file) {
    nlohmann::ordered_json json;
    json["server"] = flags.connection.server;
    json["seed"] = flags.seed;
    json["warmup"] = flags.warmup;
    if (flags.trace.empty()) {
      json["prompt_tokens"] = flags.prompt_tokens;
      json["output_tokens"] = flags.output_tokens;
    } else {
      json["trace"] = flags.trace;
    }
    if (flags.ttft_limit_ms) json["ttft_limit_ms"] = *flags.ttft_limit_ms;
    if (flags.itl_limit_ms) json["itl_limit_ms"] = *flags.itl_limit_ms;
    json["loads"] = nlohmann::ordered_json::array();
    for (const LoadResult& result : results) {
      json["loads"].push_back(ResultJson(result));
    }
    RING_RETURN_IF_ERROR(json_file->Write(json.dump(2) + "\n"));
  }
  if (!*plot_file) return absl::OkStatus();
  return plot_file->Write(RenderSvg(ResultPlots(results)));
}

bool AllFinished(const std::vector<LoadResult>& results) {
  return std::all_of(results.begin(), results.end(), [](const auto& result) {
    return result.summary.failures.empty();
  });
}

}  // namespace

int RunBench(const BenchFlags& flags) {
  const absl::StatusOr<Connection> connection =
      ReadConnection(flags.connection);
  if (!connection.ok()) return ReportMistake("bench", connection.status());
  absl::StatusOr<LoadPlan::Args> plan = ReadPlan(flags);
  if (!plan.ok()) return ReportMistake("bench", plan.status());
  if (const absl::Status warmup = CheckWarmup(flags); !warmup.ok()) {
    return ReportMistake("bench", warmup);
  }
  absl::StatusOr<ResultFile> json = ResultFile::Open("--json", flags.json);
  if (!json.ok()) return ReportMistake("bench", json.status());
  absl::StatusOr<ResultFile> plot = ResultFile::Open("--plot", flags.plot);
  if (!plot.ok()) return ReportMistake("bench", plot.status());

  Bench bench(flags, *connection, *std::move(plan));
  // Before gRPC starts threads, so that none of them takes the signals.
  const SignalWatcher interrupt([&bench](int, int) { bench.Stop(); });
  absl::Status status = bench.Run();
  if (status.ok()) {
    status = WriteResults(flags, bench.results(), &*json, &*plot);
  }
  if (!status.ok()) return ReportFailure("bench", *connection, status);
  if (bench.stopped()) {
    std::fprintf(stderr, "ring: bench was stopped before its end\n");
    return 1;
  }
  return AllFinished(bench.results()) ? 0 : 1;
}

}  // namespace ring
