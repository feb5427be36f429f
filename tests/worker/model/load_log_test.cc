// What a load says in the log, on the way and at its end.
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "kernels/cpu_backend.h"
#include "tests/support/tiny_checkpoint.h"
#include "tests/worker/model/world.h"
#include "worker/model/device_reader.h"
#include "worker/model/load_tasks.h"
#include "worker/model/weight_memory.h"
#include "worker/model/weight_shard.h"

namespace ring {
namespace {

// The numbers of a line: key=value.
using Fields = std::map<std::string, double>;

Fields FieldsOf(absl::string_view line) {
  Fields fields;
  for (absl::string_view word : absl::StrSplit(line, ' ')) {
    const std::pair<std::string, std::string> field =
        absl::StrSplit(word, absl::MaxSplits('=', 1));
    double value = 0;
    if (absl::SimpleAtod(field.second, &value)) fields[field.first] = value;
  }
  return fields;
}

// Those of the lines of `log` about `event`.
std::vector<Fields> LinesAbout(absl::string_view event,
                               const std::string& log) {
  std::vector<Fields> lines;
  for (absl::string_view line : absl::StrSplit(log, '\n')) {
    if (absl::StrContains(line, event)) lines.push_back(FieldsOf(line));
  }
  return lines;
}

// What the program writes to stderr, line by line as it comes.
class StderrPipe {
 public:
  StderrPipe() : saved_(dup(STDERR_FILENO)) {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    from_ = ends[0];
    dup2(ends[1], STDERR_FILENO);
    close(ends[1]);
  }
  ~StderrPipe() {
    dup2(saved_, STDERR_FILENO);
    close(saved_);
    close(from_);
  }
  std::string ReadLine() {
    std::string line;
    for (char c = 0; read(from_, &c, 1) == 1 && c != '\n';) line += c;
    return line;
  }

 private:
  const int saved_;
  int from_ = -1;
};

// The second task goes on when the log knows of the first.
TEST(LoadTasksTest, SaysWhatIsDone) {
  StderrPipe log;
  std::string seen;
  const absl::Status status =
      RunLoadTasks("bringing", /*count=*/2, /*total_bytes=*/300,
                   {.log_interval = std::chrono::milliseconds(1)},
                   [&](int64_t i) -> absl::StatusOr<int64_t> {
                     if (i == 0) return 100;
                     do {
                       seen = log.ReadLine();
                     } while (FieldsOf(seen)["bytes"] == 0);
                     return 200;
                   });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(absl::StrContains(seen, " INFO [-] bringing ")) << seen;
  Fields fields = FieldsOf(seen);
  EXPECT_EQ(fields["bytes"], 100);
  EXPECT_EQ(fields["of"], 300);
  EXPECT_GT(fields["seconds"], 0);
}

// A checkpoint of one file, which a rank alone reads whole.
class LoadLogTest : public testing::Test {
 protected:
  LoadLogTest()
      : tiny_(TinyConfigJson(), {.shards = 1}),
        config_(ReadModelConfig(tiny_.dir())->config),
        spec_(SpecsOfWorld(config_, 1, 1)[0]),
        checkpoint_(*Checkpoint::Open(tiny_.dir())),
        backend_(MakeCpuBackend(1)) {}

  // Bytes of the file behind its header, whose length is the first 8 bytes.
  double StoredBytes() const {
    const std::string path = tiny_.dir() + "/model.safetensors";
    std::ifstream file(path, std::ios::binary);
    uint64_t header = 0;
    file.read(reinterpret_cast<char*>(&header), sizeof(header));
    return static_cast<double>(std::filesystem::file_size(path) -
                               sizeof(header) - header);
  }

  TinyCheckpoint tiny_;
  ModelConfig config_;
  ShardSpec spec_;
  Checkpoint checkpoint_;
  std::unique_ptr<Backend> backend_;
};

TEST_F(LoadLogTest, EndsWithBytesSecondsAndRate) {
  for (const bool on_device : {false, true}) {
    SCOPED_TRACE(on_device ? "through a device" : "on the host");
    testing::internal::CaptureStderr();
    const auto shard = on_device
                           ? WeightShard::LoadOn(config_, checkpoint_, spec_,
                                                 /*threads=*/2, backend_.get())
                           : WeightShard::Load(config_, checkpoint_, spec_, 2);
    const std::string log = testing::internal::GetCapturedStderr();
    ASSERT_TRUE(shard.ok()) << shard.status();
    std::vector<Fields> begin = LinesAbout(" loading weights ", log);
    std::vector<Fields> end = LinesAbout(" weights loaded ", log);
    ASSERT_EQ(begin.size(), 1u) << log;
    ASSERT_EQ(end.size(), 1u) << log;
    EXPECT_EQ(begin[0]["bytes"], StoredBytes());
    EXPECT_EQ(end[0]["planned_bytes"], StoredBytes());
    EXPECT_EQ(end[0]["read_bytes"], StoredBytes());
    EXPECT_EQ(end[0]["memory_bytes"], static_cast<double>(shard->bytes()));
    EXPECT_GT(end[0]["seconds"], 0);
    // Printed with six digits.
    const double rate = StoredBytes() / end[0]["seconds"] * 1e-9;
    EXPECT_NEAR(end[0]["gb_per_s"], rate, 2e-5 * rate);
  }
}

// Of two ranks, to whom matrices whose columns are sliced come one by one.
TEST_F(LoadLogTest, SaysWhatHasGoneToADevice) {
  const auto plan = LoadPlan::Create(config_, checkpoint_.tensors(),
                                     SpecsOfWorld(config_, 2, 1)[0]);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const auto device = backend_->Allocate(plan->memory_bytes());
  auto views = WeightMemory::Reserve(plan->memory_bytes());
  ASSERT_TRUE(device.ok() && views.ok());
  testing::internal::CaptureStderr();
  const auto bytes = ReadSlicesTo(
      *plan, checkpoint_, {.log_interval = std::chrono::milliseconds(0)},
      backend_.get(), static_cast<std::byte*>((*device)->data()),
      views->data());
  const std::string log = testing::internal::GetCapturedStderr();
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  std::vector<Fields> lines = LinesAbout(" reading weights ", log);
  ASSERT_GT(lines.size(), 1u) << log;
  const auto total = static_cast<double>(plan->read_bytes());
  double last = 0;
  for (Fields& line : lines) {
    EXPECT_GT(line["bytes"], last);
    last = line["bytes"];
    EXPECT_EQ(line["of"], total);
  }
  EXPECT_EQ(last, total);
}

}  // namespace
}  // namespace ring
