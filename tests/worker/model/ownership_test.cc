#include "worker/model/ownership.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/model/world.h"
#include "worker/model_files/inventory.h"

namespace ring {
namespace {

using ::testing::HasSubstr;

ModelConfig ConfigOf(const std::string& name) {
  const auto json =
      ReadJsonFile(std::string(RING_TEST_DATA) + "/configs/" + name + ".json");
  const auto file = ParseModelConfig(*json);
  EXPECT_TRUE(file.ok()) << file.status();
  return file->config;
}

absl::Status Check(const ModelConfig& config,
                   const std::vector<ShardSpec>& specs) {
  const TensorTable tensors = UnstoredTensors(config);
  std::vector<LoadPlan> plans;
  for (const ShardSpec& spec : specs) {
    auto plan = LoadPlan::Create(config, tensors, spec);
    EXPECT_TRUE(plan.ok()) << plan.status();
    plans.push_back(*std::move(plan));
  }
  return CheckOwnership(config, tensors, plans);
}

TEST(OwnershipTest, HoldsForTheReleasedModelsOnEveryMesh) {
  for (const char* name : {"flash", "mini", "flash-1b"}) {
    const ModelConfig config = ConfigOf(name);
    for (const auto& [tp, dp] : std::vector<std::pair<int, int>>{
             {1, 1}, {1, 4}, {2, 2}, {4, 1}, {8, 1}}) {
      const absl::Status status = Check(config, SpecsOfWorld(config, tp, dp));
      EXPECT_TRUE(status.ok()) << name << " tp " << tp << ": " << status;
    }
  }
}

TEST(OwnershipTest, HoldsForSlicedExperts) {
  for (const char* name : {"flash", "mini", "flash-1b"}) {
    const ModelConfig config = ConfigOf(name);
    for (const int tp : {1, 2, 4, 8}) {
      const absl::Status status =
          Check(config, SpecsOfWorld(config, tp, 1, /*slice_experts=*/true));
      EXPECT_TRUE(status.ok()) << name << " tp " << tp << ": " << status;
    }
  }
}

TEST(OwnershipTest, NamesASliceOfAnExpertThatIsHeldTwice) {
  const ModelConfig config = ConfigOf("flash-1b");
  std::vector<ShardSpec> specs =
      SpecsOfWorld(config, 2, 1, /*slice_experts=*/true);
  specs[1].slice_experts = false;
  EXPECT_THAT(std::string(Check(config, specs).message()),
              HasSubstr("mlp.experts.0.gate_proj.weight: row 0 of 384 is held "
                        "by 2 ranks instead of 1"));
}

TEST(OwnershipTest, HoldsForAVocabularyThatDoesNotDivide) {
  ModelConfig config = ConfigOf("flash-1b");
  config.vocab_size = 1001;
  const absl::Status status = Check(config, SpecsOfWorld(config, 8, 1));
  EXPECT_TRUE(status.ok()) << status;
}

TEST(OwnershipTest, NamesAnExpertWithTwoOwners) {
  const ModelConfig config = ConfigOf("flash-1b");
  std::vector<ShardSpec> specs = SpecsOfWorld(config, 2, 1);
  specs[1].experts[5].push_back(specs[0].experts[5].front());
  EXPECT_THAT(std::string(Check(config, specs).message()),
              HasSubstr("model.layers.5.mlp.experts.0.gate_proj.weight: row 0 "
                        "of 384 is held by 2 ranks instead of 1"));
}

TEST(OwnershipTest, NamesAnExpertWithoutOwner) {
  const ModelConfig config = ConfigOf("flash-1b");
  std::vector<ShardSpec> specs = SpecsOfWorld(config, 2, 1);
  specs[1].experts[3].pop_back();
  EXPECT_THAT(std::string(Check(config, specs).message()),
              HasSubstr("model.layers.3.mlp.experts.63.gate_proj.weight: row 0 "
                        "of 384 is held by 0 ranks instead of 1"));
}

TEST(OwnershipTest, NamesRowsThatNoRankHolds) {
  const ModelConfig config = ConfigOf("flash-1b");
  std::vector<ShardSpec> specs = SpecsOfWorld(config, 2, 1);
  // Both ranks take the first half.
  specs[1].tp_rank = 0;
  EXPECT_THAT(std::string(Check(config, specs).message()),
              HasSubstr("model.word_embeddings.weight: row 0 of 81920 is held "
                        "by 2 ranks instead of 1"));
}

}  // namespace
}  // namespace ring
