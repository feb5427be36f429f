#include "worker/model/device_reader.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/mutex.h"
#include "kernels/base/status_macros.h"
#include "worker/model/read_tasks.h"
#include "worker/model/slice_fill.h"

namespace ring {
namespace {

using Clock = std::chrono::steady_clock;

// Buffers beyond one a thread: full ones on their way to the device.
constexpr int kBuffersInFlight = 8;

// A task whose bytes lie in a buffer, packed.
struct FullBuffer {
  const ReadTask* task = nullptr;
  std::byte* data = nullptr;
};

// Between the readers and the engine thread. A task is megabytes of work, so
// one lock for everything costs nothing.
class Pipeline {
 public:
  Pipeline(const std::vector<ReadTask>& tasks, int readers,
           std::vector<std::byte*> buffers)
      : tasks_(tasks), readers_(readers), free_(std::move(buffers)) {}

  // A reader's next task and a buffer for it; null when there is no more to do.
  FullBuffer Take() EXCLUDES(mutex_) {
    MutexLock lock(&mutex_);
    while (free_.empty() && error_.ok()) changed_.Wait(&mutex_);
    if (!error_.ok() || next_ == tasks_.size()) return {};
    FullBuffer taken = {&tasks_[next_++], free_.back()};
    free_.pop_back();
    return taken;
  }
  void Fill(const FullBuffer& buffer, const absl::Status& status)
      EXCLUDES(mutex_) {
    MutexLock lock(&mutex_);
    error_.Update(status);
    full_.push_back(buffer);
    changed_.NotifyAll();
  }
  void EndReader() EXCLUDES(mutex_) {
    MutexLock lock(&mutex_);
    --readers_;
    changed_.NotifyAll();
  }

  // The engine thread's next full buffer. False, if `wait`, when all readers
  // have ended; else when there is none now.
  bool Next(bool wait, FullBuffer* buffer) EXCLUDES(mutex_) {
    MutexLock lock(&mutex_);
    while (wait && full_.empty() && readers_ > 0) changed_.Wait(&mutex_);
    if (full_.empty()) return false;
    *buffer = full_.front();
    full_.pop_front();
    return true;
  }
  void Return(std::byte* buffer) EXCLUDES(mutex_) {
    MutexLock lock(&mutex_);
    free_.push_back(buffer);
    changed_.NotifyAll();
  }
  absl::Status status() EXCLUDES(mutex_) {
    MutexLock lock(&mutex_);
    return error_;
  }

 private:
  const std::vector<ReadTask>& tasks_;
  Mutex mutex_;
  CondVar changed_;
  size_t next_ GUARDED_BY(mutex_) = 0;
  int readers_ GUARDED_BY(mutex_);
  std::vector<std::byte*> free_ GUARDED_BY(mutex_);
  std::deque<FullBuffer> full_ GUARDED_BY(mutex_);
  absl::Status error_ GUARDED_BY(mutex_);
};

// The task's bytes, packed into `to`.
absl::Status ReadPacked(const Checkpoint& checkpoint, const ReadTask& task,
                        std::byte* to) {
  if (task.quantize != nullptr) {
    const SliceSource source = BlockRowSource(
        *task.quantize, task.block_rows.begin, task.block_rows.end);
    return ReadRowSegments(checkpoint, {task.quantize->tensor, source.rows,
                                        source.cols, to})
        .status();
  }
  if (!task.run.empty()) {
    return checkpoint.files()[task.file].ReadAt(task.offset,
                                                absl::MakeSpan(to, task.bytes));
  }
  RowSegments part = task.segments;
  part.dest = to;
  return ReadRowSegments(checkpoint, part).status();
}

// The engine thread's half.
class Sender {
 public:
  Sender(const LoadPlan& plan, Backend* backend, std::byte* device,
         std::byte* views, std::byte* quantize_staging)
      : plan_(plan),
        backend_(backend),
        device_(device),
        views_(views),
        quantize_staging_(quantize_staging) {}

  // Queues what brings the buffer's bytes to their places.
  void Send(const FullBuffer& buffer) {
    const ReadTask& task = *buffer.task;
    if (task.quantize != nullptr) {
      backend_->CopyToDevice(quantize_staging_, buffer.data, task.bytes);
      backend_->QuantizeBlocks(BlockRowQuantization(
          *task.quantize, task.block_rows.begin, task.block_rows.end,
          quantize_staging_, device_));
    } else if (task.run.empty()) {
      Place(task.segments.dest, buffer.data, task.bytes);
    } else {
      const std::byte* from = buffer.data;
      for (const Extent& extent : task.run) {
        Place(extent.dest, from, extent.bytes);
        from += extent.bytes;
      }
    }
  }

 private:
  // What is named outside of the shard stays on the host.
  void Place(std::byte* dest, const std::byte* from, int64_t bytes) {
    if (dest >= views_ && dest < views_ + plan_.memory_bytes()) {
      backend_->CopyToDevice(device_ + (dest - views_), from, bytes);
    } else {
      std::memcpy(dest, from, static_cast<size_t>(bytes));
    }
  }

  const LoadPlan& plan_;
  Backend* const backend_;
  std::byte* const device_;
  std::byte* const views_;
  std::byte* const quantize_staging_;
};

// Largest task, which every buffer has to hold; of those that are quantised if
// `quantize`.
int64_t LargestTask(const std::vector<ReadTask>& tasks, bool quantize) {
  int64_t bytes = 0;
  for (const ReadTask& task : tasks) {
    if (!quantize || task.quantize != nullptr) {
      bytes = std::max(bytes, task.bytes);
    }
  }
  return bytes;
}

// Sends what `pipeline` brings until its readers have ended. Returns the bytes.
int64_t SendAll(Pipeline* pipeline, Sender* sender, Backend* backend,
                int64_t total_bytes, const LoadOptions& options) {
  std::deque<std::pair<int64_t, std::byte*>> sent;  // mark, buffer
  const auto take_back = [&] {
    backend->WaitUntil(sent.front().first);
    pipeline->Return(sent.front().second);
    sent.pop_front();
  };
  const Clock::time_point start = Clock::now();
  Clock::time_point next_report = start + options.log_interval;
  int64_t bytes = 0;
  for (;;) {
    FullBuffer buffer;
    if (!pipeline->Next(/*wait=*/sent.empty(), &buffer)) {
      if (sent.empty()) return bytes;
      take_back();
      continue;
    }
    sender->Send(buffer);
    sent.emplace_back(backend->Mark(), buffer.data);
    if (sent.size() > kBuffersInFlight) take_back();
    bytes += buffer.task->bytes;
    if (options.progress != nullptr) options.progress->Tick();
    if (Clock::now() >= next_report) {
      LogLoad("reading weights", bytes, total_bytes, start);
      next_report += options.log_interval;
    }
  }
}

}  // namespace

absl::StatusOr<int64_t> ReadSlicesTo(const LoadPlan& plan,
                                     const Checkpoint& checkpoint,
                                     const LoadOptions& options,
                                     Backend* backend, std::byte* device,
                                     std::byte* views) {
  const ReadTaskList list(plan, views);
  const std::vector<ReadTask>& tasks = list.tasks();
  const int readers = static_cast<int>(std::clamp<int64_t>(
      static_cast<int64_t>(tasks.size()), 1, options.threads));
  const int64_t buffer_bytes = LargestTask(tasks, /*quantize=*/false);
  const int num_buffers = readers + kBuffersInFlight;
  RING_ASSIGN_OR_RETURN(const std::unique_ptr<DeviceBuffer> pinned,
                        backend->AllocateHost(buffer_bytes * num_buffers));
  RING_ASSIGN_OR_RETURN(
      const std::unique_ptr<DeviceBuffer> staging,
      backend->Allocate(LargestTask(tasks, /*quantize=*/true)));
  std::vector<std::byte*> buffers;
  for (int i = 0; i < num_buffers; ++i) {
    buffers.push_back(static_cast<std::byte*>(pinned->data()) +
                      i * buffer_bytes);
  }

  Pipeline pipeline(tasks, readers, std::move(buffers));
  std::vector<std::thread> reader_threads;
  for (int i = 0; i < readers; ++i) {
    reader_threads.emplace_back([&] {
      for (FullBuffer b = pipeline.Take(); b.task != nullptr;
           b = pipeline.Take()) {
        pipeline.Fill(b, ReadPacked(checkpoint, *b.task, b.data));
      }
      pipeline.EndReader();
    });
  }
  Sender sender(plan, backend, device, views,
                static_cast<std::byte*>(staging->data()));
  const int64_t bytes =
      SendAll(&pipeline, &sender, backend, plan.read_bytes(), options);
  for (std::thread& reader : reader_threads) reader.join();
  backend->Synchronize();
  RING_RETURN_IF_ERROR(pipeline.status());

  std::vector<float> wide;
  for (const auto& [slice, source] : list.vectors()) {
    wide.resize(static_cast<size_t>(slice->cols.size()));
    Widen(source, *ToDType(slice->tensor->dtype), slice->cols.size(),
          wide.data());
    backend->CopyToDevice(device + slice->dest, wide.data(),
                          slice->cols.size() * int64_t{sizeof(float)});
    backend->Synchronize();
  }
  return bytes;
}

}  // namespace ring
