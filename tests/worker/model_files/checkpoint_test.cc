// Headers, index, inventory and digest on real and on small made folders. The
// many ways in which a folder can be broken are in sparse_check_test.py.
#include "worker/model_files/checkpoint.h"

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_checkpoint.h"
#include "worker/model_files/digest.h"
#include "worker/model_files/inventory.h"
#include "worker/model_files/model_config.h"

namespace ring {
namespace {

using ::testing::HasSubstr;

const char* const kRingTiny = RING_TEST_DATA "/ring-tiny";

ModelConfig ConfigOf(const std::string& dir) {
  const auto file = ReadModelConfig(dir);
  EXPECT_TRUE(file.ok()) << file.status();
  return file->config;
}

TEST(CheckpointTest, FindsTheTensorsOfRingTiny) {
  const auto checkpoint = Checkpoint::Open(kRingTiny);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(checkpoint->files().size(), 2u);
  EXPECT_EQ(checkpoint->tensors().tensors().size(), 500u);
  // As the file's header has it: 24768 bytes into the data, which begins
  // after 8 + 27536 bytes.
  const TensorInfo* head = checkpoint->tensors().Find("lm_head.weight");
  ASSERT_NE(head, nullptr);
  EXPECT_EQ(head->dtype, "BF16");
  EXPECT_EQ(head->shape, (std::vector<int64_t>{1024, 128}));
  EXPECT_EQ(head->file, 0);
  EXPECT_EQ(head->offset, 8 + 27536 + 24768);
  EXPECT_EQ(head->bytes, 1024 * 128 * 2);
  EXPECT_EQ(checkpoint->tensors().Find("lm_head"), nullptr);
}

TEST(CheckpointTest, ReadsBytesWhereTheHeaderSays) {
  const TinyCheckpoint tiny(TinyConfigJson(), {.matrix_dtype = "F32"});
  const auto checkpoint = Checkpoint::Open(tiny.dir());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const auto& [name, tensor] : tiny.tensors()) {
    const TensorInfo* info = checkpoint->tensors().Find(name);
    ASSERT_NE(info, nullptr) << name;
    EXPECT_EQ(info->shape, tensor.shape);
    ASSERT_EQ(info->dtype, "F32") << name;
    std::vector<float> values(tensor.values.size());
    const absl::Status status = checkpoint->files()[info->file].ReadAt(
        info->offset,
        absl::MakeSpan(reinterpret_cast<std::byte*>(values.data()),
                       values.size() * sizeof(float)));
    ASSERT_TRUE(status.ok()) << status;
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(values[i], tensor.values[i]) << name << " " << i;
    }
  }
}

TEST(CheckpointTest, OpensASingleFile) {
  const TinyCheckpoint tiny(TinyConfigJson(), {.shards = 1});
  const auto checkpoint = Checkpoint::Open(tiny.dir());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(checkpoint->files().size(), 1u);
}

TEST(CheckpointTest, SaysWhenAFolderHasNoWeights) {
  const auto checkpoint = Checkpoint::Open(RING_TEST_DATA "/configs");
  EXPECT_TRUE(absl::IsNotFound(checkpoint.status()));
  EXPECT_THAT(std::string(checkpoint.status().message()),
              HasSubstr("has neither model.safetensors.index.json nor "
                        "model.safetensors"));
}

TEST(ReadOnlyFileTest, FillsPartsFromOneRun) {
  const auto file = ReadOnlyFile::Open(std::string(kRingTiny) + "/config.json");
  ASSERT_TRUE(file.ok()) << file.status();
  char a[2], b[3];
  iovec parts[] = {{a, 2}, {nullptr, 0}, {b, 3}};
  ASSERT_TRUE(file->ReadAt(4, absl::MakeSpan(parts)).ok());
  // {\n  "architectures"
  EXPECT_EQ(std::string(a, 2), "\"a");
  EXPECT_EQ(std::string(b, 3), "rch");
}

TEST(ReadOnlyFileTest, NamesTheProblem) {
  EXPECT_TRUE(absl::IsNotFound(ReadOnlyFile::Open("/nonexistent").status()));
  EXPECT_THAT(std::string(ReadOnlyFile::Open("/tmp").status().message()),
              HasSubstr("/tmp is not a regular file"));
  const auto file = ReadOnlyFile::Open(std::string(kRingTiny) + "/config.json");
  std::byte byte;
  const absl::Status status =
      file->ReadAt(file->bytes(), absl::MakeSpan(&byte, 1));
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("the file ends there"));
}

TEST(InventoryTest, CountsRingTinyAndItsNextTokenLayer) {
  const auto checkpoint = Checkpoint::Open(kRingTiny);
  const auto inventory =
      CheckInventory(ConfigOf(kRingTiny), checkpoint->tensors());
  ASSERT_TRUE(inventory.ok()) << inventory.status();
  EXPECT_EQ(inventory->tensors, 437);
  EXPECT_EQ(inventory->next_token_tensors, 63);
  EXPECT_EQ(inventory->skipped_tensors, 0);
  // Both parts together are what the model's card says.
  EXPECT_EQ(inventory->parameters, 7457520);
  EXPECT_EQ(inventory->bytes + inventory->next_token_bytes, 16887040);
}

TEST(InventoryTest, CountsTheParametersOfTheConfigs) {
  const auto parameters = [](const std::string& name) {
    const auto json =
        ReadJsonFile(std::string(RING_TEST_DATA) + "/configs/" + name);
    const ModelConfig config = ParseModelConfig(*json)->config;
    int64_t sum = 0;
    for (const ExpectedTensor& tensor : ExpectedTensors(config)) {
      int64_t elements = 1;
      for (int64_t size : tensor.shape) elements *= size;
      sum += elements;
    }
    return sum;
  };
  EXPECT_EQ(parameters("flash.json"), 104181665536);
  EXPECT_EQ(parameters("mini.json"), 16423448320);
  EXPECT_EQ(parameters("flash-1b.json"), 1183522752);
}

TEST(InventoryTest, PassesOverKnownNames) {
  const auto checkpoint = Checkpoint::Open(kRingTiny);
  TensorTable table = checkpoint->tensors();
  for (const char* name :
       {"model.mtp.0.weight", "model.layers.1.attention.rotary.inv_freq",
        "v_head.weight", "model.layers.0.attention.slope"}) {
    TensorInfo tensor;
    tensor.name = name;
    tensor.dtype = "I64";
    table.Add(tensor);
  }
  const auto inventory = CheckInventory(ConfigOf(kRingTiny), table);
  ASSERT_TRUE(inventory.ok()) << inventory.status();
  EXPECT_EQ(inventory->skipped_tensors, 4);
}

TEST(InventoryTest, ListsTheFirstProblemsAndCountsTheRest) {
  const auto inventory = CheckInventory(ConfigOf(kRingTiny), TensorTable());
  EXPECT_TRUE(absl::IsInvalidArgument(inventory.status()));
  EXPECT_THAT(std::string(inventory.status().message()),
              HasSubstr("model.word_embeddings.weight [1024, 128] is missing"));
  EXPECT_THAT(std::string(inventory.status().message()),
              HasSubstr("and 427 more problems"));
}

TEST(InventoryTest, AcceptsBlockFp8AndFp32) {
  for (const TinyCheckpointOptions& options :
       std::vector<TinyCheckpointOptions>{
           {.block_fp8 = true},
           {.matrix_dtype = "F32", .router_dtype = "BF16"}}) {
    const TinyCheckpoint tiny(TinyConfigJson(), options);
    const auto checkpoint = Checkpoint::Open(tiny.dir());
    const auto inventory =
        CheckInventory(ConfigOf(tiny.dir()), checkpoint->tensors());
    ASSERT_TRUE(inventory.ok()) << inventory.status();
    EXPECT_EQ(inventory->tensors, static_cast<int64_t>(tiny.tensors().size()));
  }
}

// FIPS 180-4, one-block message "abc" and the empty message.
TEST(DigestTest, IsSha256) {
  EXPECT_EQ(Sha256Hex("abc"),
            "ba7816bf8f01cfea414140de5dae2223"
            "b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256Hex(""),
            "e3b0c44298fc1c149afbf4c8996fb924"
            "27ae41e4649b934ca495991b7852b855");
}

// Changes one byte of a file of a copied folder at `offset`.
void Flip(const std::string& path, int64_t offset) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(offset);
  const char byte = static_cast<char>(file.get() ^ 1);
  file.seekp(offset);
  file.put(byte);
  ASSERT_TRUE(file.good()) << path;
}

TEST(DigestTest, CoversFilesAndHeadersButNoData) {
  const TinyCheckpoint tiny(TinyConfigJson());
  const auto digest = [&] {
    const auto text = ModelDigest(tiny.dir());
    EXPECT_TRUE(text.ok()) << text.status();
    return text.value_or("");
  };
  const std::string first = digest();
  EXPECT_EQ(first.size(), 64u);
  EXPECT_EQ(ModelDigest(tiny.dir() + "/").value(), first);

  const std::string shard = tiny.dir() + "/model-00002-of-00002.safetensors";
  Flip(shard, static_cast<int64_t>(std::filesystem::file_size(shard)) - 1);
  EXPECT_EQ(digest(), first) << "data is not covered";

  std::ofstream(tiny.dir() + "/tokenizer.json") << "{}";
  const std::string with_tokenizer = digest();
  EXPECT_NE(with_tokenizer, first);

  std::ofstream(tiny.dir() + "/config.json", std::ios::app) << " ";
  const std::string with_config = digest();
  EXPECT_NE(with_config, with_tokenizer);

  // A byte of the second header: "pt" of its metadata.
  std::ifstream file(shard, std::ios::binary);
  std::string header(4096, '\0');
  file.read(header.data(), 4096);
  const size_t metadata = header.find("\"pt\"");
  ASSERT_NE(metadata, std::string::npos);
  Flip(shard, static_cast<int64_t>(metadata) + 1);
  EXPECT_NE(digest(), with_config);

  std::filesystem::remove(shard);
  EXPECT_TRUE(absl::IsNotFound(ModelDigest(tiny.dir()).status()));
}

TEST(DigestTest, WorksWithoutWeights) {
  const TinyCheckpoint tiny(TinyConfigJson(), {.shards = 1});
  const std::string all = ModelDigest(tiny.dir()).value();
  std::filesystem::remove(tiny.dir() + "/model.safetensors");
  const auto without = ModelDigest(tiny.dir());
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_NE(*without, all);
  std::filesystem::remove(tiny.dir() + "/config.json");
  EXPECT_TRUE(absl::IsNotFound(ModelDigest(tiny.dir()).status()));
}

}  // namespace
}  // namespace ring
