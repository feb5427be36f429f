#include "worker/model_files/model_config.h"

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ring {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Json FileOf(const std::string& path) {
  const auto json = ReadJsonFile(std::string(RING_TEST_DATA) + "/" + path);
  EXPECT_TRUE(json.ok()) << json.status();
  return *json;
}
Json Flash() { return FileOf("configs/flash.json"); }

std::string ErrorOf(const Json& json) {
  const auto file = ParseModelConfig(json);
  EXPECT_FALSE(file.ok());
  EXPECT_TRUE(file.ok() || absl::IsInvalidArgument(file.status()));
  return std::string(file.status().message());
}

TEST(ModelConfigTest, ReadsFlash) {
  const auto file = ParseModelConfig(Flash());
  ASSERT_TRUE(file.ok()) << file.status();
  const ModelConfig& c = file->config;
  EXPECT_EQ(c.hidden_size, 4096);
  EXPECT_EQ(c.num_hidden_layers, 32);
  EXPECT_EQ(c.num_attention_heads, 32);
  EXPECT_EQ(c.num_key_value_heads, 4);
  EXPECT_EQ(c.head_dim, 128);
  EXPECT_EQ(c.layer_group_size, 8);
  EXPECT_EQ(c.group_norm_size, 4);
  EXPECT_FALSE(c.linear_silu);
  EXPECT_EQ(c.intermediate_size, 9216);
  EXPECT_EQ(c.first_k_dense_replace, 1);
  EXPECT_EQ(c.num_experts, 256);
  EXPECT_EQ(c.num_experts_per_tok, 8);
  EXPECT_EQ(c.num_shared_experts, 1);
  EXPECT_EQ(c.moe_intermediate_size, 1024);
  EXPECT_EQ(c.n_group, 8);
  EXPECT_EQ(c.topk_group, 4);
  EXPECT_TRUE(c.norm_topk_prob);
  EXPECT_EQ(c.routed_scaling_factor, 2.5f);
  EXPECT_EQ(c.rms_norm_eps, 1e-6f);
  EXPECT_EQ(c.rotary_dim, 64);
  EXPECT_EQ(c.rope_theta, 1e6);
  EXPECT_FALSE(c.rope_scaling.has_value());
  EXPECT_EQ(c.max_position_embeddings, 131072);
  EXPECT_EQ(c.vocab_size, 157184);
  EXPECT_THAT(c.eos_token_ids, ElementsAre(156892));
  EXPECT_FALSE(c.tie_word_embeddings);
  EXPECT_EQ(c.num_nextn_predict_layers, 0);
  EXPECT_EQ(c.quantization, Quantization::kNone);
  EXPECT_TRUE(file->warnings.empty());
}

// Every field of the file is in the report, with its value.
TEST(ModelConfigTest, ReportsEveryField) {
  const Json json = Flash();
  const auto file = ParseModelConfig(json);
  ASSERT_TRUE(file.ok());
  for (const auto& [name, value] : json.items()) {
    bool found = false;
    for (const ConfigField& field : file->fields) found |= field.name == name;
    EXPECT_TRUE(found) << name;
  }
}

TEST(ModelConfigTest, ReadsTheOtherConfigs) {
  for (const char* path : {"configs/mini.json", "configs/flash-1b.json",
                           "ring-tiny/config.json"}) {
    const auto file = ParseModelConfig(FileOf(path));
    EXPECT_TRUE(file.ok()) << path << ": " << file.status();
  }
}

TEST(ModelConfigTest, FindsSoftmaxLayers) {
  const auto softmax_layers = [](int layers, int group) {
    ModelConfig c;
    c.num_hidden_layers = layers;
    c.layer_group_size = group;
    std::vector<int> found;
    for (int l = 0; l < layers; ++l) {
      if (c.IsSoftmaxLayer(l)) found.push_back(l);
    }
    return found;
  };
  EXPECT_THAT(softmax_layers(32, 8), ElementsAre(7, 15, 23, 31));
  EXPECT_THAT(softmax_layers(20, 5), ElementsAre(4, 9, 14, 19));
  // The tail after the last full group.
  EXPECT_THAT(softmax_layers(7, 3), ElementsAre(2, 5, 6));
  EXPECT_THAT(softmax_layers(8, 5), ElementsAre(4, 5, 6, 7));
  EXPECT_THAT(softmax_layers(2, 8), ElementsAre(0, 1));
  EXPECT_THAT(softmax_layers(3, 1), ElementsAre(0, 1, 2));
}

TEST(ModelConfigTest, RefusesAMissingFieldByName) {
  for (const char* name : {"architectures",
                           "model_type",
                           "hidden_size",
                           "num_hidden_layers",
                           "num_attention_heads",
                           "num_key_value_heads",
                           "head_dim",
                           "layer_group_size",
                           "group_norm_size",
                           "linear_silu",
                           "intermediate_size",
                           "first_k_dense_replace",
                           "num_experts",
                           "num_experts_per_tok",
                           "num_shared_experts",
                           "moe_intermediate_size",
                           "n_group",
                           "topk_group",
                           "routed_scaling_factor",
                           "rms_norm_eps",
                           "rope_theta",
                           "max_position_embeddings",
                           "vocab_size",
                           "num_nextn_predict_layers"}) {
    Json json = Flash();
    json.erase(name);
    EXPECT_THAT(ErrorOf(json), HasSubstr(std::string(name) + " is missing"));
    json[name] = nullptr;
    EXPECT_THAT(ErrorOf(json), HasSubstr(std::string(name) + " is missing"));
  }
}

TEST(ModelConfigTest, RefusesUnsupportedValuesByNameAndValue) {
  const std::vector<std::pair<const char*, Json>> cases = {
      {"architectures", {"BailingMoeV2ForCausalLM"}},
      {"model_type", "bailing_moe"},
      {"hidden_size", -4096},
      {"hidden_size", 4096.5},
      {"hidden_size", "4096"},
      {"hidden_size", uint64_t{1} << 63},
      {"num_hidden_layers", 0},
      {"num_hidden_layers", 100000},
      {"num_experts", int64_t{1} << 40},
      {"vocab_size", int64_t{1} << 40},
      {"linear_silu", 1},
      {"hidden_act", "gelu"},
      {"norm_topk_prob", "yes"},
      {"routed_scaling_factor", 0},
      {"score_function", "softmax"},
      {"router_dtype", "bf16"},
      {"moe_router_enable_expert_bias", false},
      {"moe_router_enable_routed_scaling", false},
      {"moe_router_enable_shared_expert", false},
      {"rms_norm_eps", -1e-6},
      {"rope_theta", 0},
      {"partial_rotary_factor", 1.5},
      {"linear_rope", false},
      {"rope_traditional", true},
      {"rope_interleave", true},
      {"rope_scaling", "yarn"},
      {"eos_token_id", 157184},
      {"eos_token_id", {156892, -1}},
      {"use_qk_norm", false},
      {"use_qkv_bias", true},
      {"use_bias", true},
      {"use_rmsnorm", false},
      {"norm_head", true},
      {"sliding_window", 4096},
      {"use_sliding_window", true},
      {"using_split_qkv_in_self_attention", true},
      {"rope_parameters", {{"rope_theta", 1e4}}},
      {"quantization", {{"bits", 4}}},
      {"compression_config", {{"format", "pack-quantized"}}},
      {"quantization_config", "fp8"},
  };
  for (const auto& [name, value] : cases) {
    Json json = Flash();
    json[name] = value;
    EXPECT_THAT(ErrorOf(json),
                HasSubstr(std::string(name) + " = " + value.dump() +
                          " is not supported (supported: "));
  }
}

TEST(ModelConfigTest, RefusesOtherQuantisations) {
  for (const char* method :
       {"gptq", "awq", "compressed-tensors", "bitsandbytes"}) {
    Json json = Flash();
    json["quantization_config"] = {{"quant_method", method}};
    EXPECT_THAT(ErrorOf(json),
                HasSubstr("quantization_config.quant_method = \"" +
                          std::string(method) + "\" is not supported"));
  }
  Json json = Flash();
  json["quantization_config"] = {{"quant_method", "fp8"},
                                 {"weight_block_size", {64, 64}}};
  EXPECT_THAT(ErrorOf(json),
              HasSubstr("quantization_config.weight_block_size = [64,64]"));
  json["quantization_config"].erase("weight_block_size");
  EXPECT_THAT(ErrorOf(json), HasSubstr("weight_block_size is missing"));
  json["quantization_config"] = {{"quant_method", "fp8"},
                                 {"weight_block_size", {128, 128}},
                                 {"activation_scheme", "static"}};
  EXPECT_THAT(ErrorOf(json), HasSubstr("activation_scheme = \"static\""));
}

TEST(ModelConfigTest, ReadsBlockFp8) {
  Json json = Flash();
  json["quantization_config"] = {{"quant_method", "fp8"},
                                 {"fmt", "e4m3"},
                                 {"activation_scheme", "dynamic"},
                                 {"weight_block_size", {128, 128}}};
  const auto file = ParseModelConfig(json);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->config.quantization, Quantization::kBlockFp8);
}

TEST(ModelConfigTest, ReadsYarn) {
  Json json = Flash();
  json["rope_scaling"] = {{"type", "yarn"},
                          {"factor", 4.0},
                          {"original_max_position_embeddings", 131072},
                          {"beta_fast", 16}};
  const auto file = ParseModelConfig(json);
  ASSERT_TRUE(file.ok()) << file.status();
  const YarnScaling& yarn = *file->config.rope_scaling;
  EXPECT_EQ(yarn.factor, 4);
  EXPECT_EQ(yarn.original_max_position_embeddings, 131072);
  EXPECT_EQ(yarn.beta_fast, 16);
  EXPECT_EQ(yarn.beta_slow, 1);
  EXPECT_EQ(yarn.attn_factor, 1);

  json["rope_scaling"]["type"] = "linear";
  EXPECT_THAT(ErrorOf(json), HasSubstr("rope_scaling.type = \"linear\""));
  json["rope_scaling"].erase("type");
  EXPECT_THAT(ErrorOf(json), HasSubstr("rope_scaling.rope_type is missing"));
  json["rope_scaling"]["rope_type"] = "yarn";
  EXPECT_TRUE(ParseModelConfig(json).ok());
  json["rope_scaling"]["mscale"] = 0.7;
  EXPECT_THAT(ErrorOf(json), HasSubstr("rope_scaling.mscale = 0.7"));
  json["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 4}};
  EXPECT_THAT(
      ErrorOf(json),
      HasSubstr("rope_scaling.original_max_position_embeddings is missing"));
}

TEST(ModelConfigTest, PrefersTheFieldsThatWin) {
  Json json = Flash();
  json["use_linear_silu"] = true;
  json["rotary_dim"] = 32;
  auto file = ParseModelConfig(json);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(file->config.linear_silu);
  EXPECT_EQ(file->config.rotary_dim, 32);
  // With neither field the whole head rotates.
  json.erase("rotary_dim");
  json.erase("partial_rotary_factor");
  file = ParseModelConfig(json);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->config.rotary_dim, 128);
}

TEST(ModelConfigTest, ChecksNumbersAgainstEachOther) {
  const auto error = [](std::function<void(Json*)> change) {
    Json json = Flash();
    change(&json);
    return ErrorOf(json);
  };
  EXPECT_THAT(error([](Json* j) { (*j)["num_key_value_heads"] = 5; }),
              HasSubstr("num_key_value_heads = 5 does not divide "
                        "num_attention_heads = 32"));
  EXPECT_THAT(error([](Json* j) { (*j)["group_norm_size"] = 3; }),
              HasSubstr("group_norm_size = 3 does not divide"));
  EXPECT_THAT(error([](Json* j) { (*j)["n_group"] = 7; }),
              HasSubstr("n_group = 7 does not divide num_experts = 256"));
  EXPECT_THAT(error([](Json* j) { (*j)["n_group"] = 256; }),
              HasSubstr("fewer than 2 experts in a group"));
  EXPECT_THAT(error([](Json* j) { (*j)["topk_group"] = 9; }),
              HasSubstr("topk_group = 9 is above n_group = 8"));
  EXPECT_THAT(error([](Json* j) { (*j)["num_experts_per_tok"] = 129; }),
              HasSubstr("num_experts_per_tok = 129 is above the 128 experts"));
  EXPECT_THAT(error([](Json* j) { (*j)["rotary_dim"] = 63; }),
              HasSubstr("rotary_dim = 63"));
  EXPECT_THAT(error([](Json* j) { (*j)["first_k_dense_replace"] = 33; }),
              HasSubstr("first_k_dense_replace = 33 is above"));
}

TEST(ModelConfigTest, FindsAllProblemsInOnePass) {
  Json json = Flash();
  json.erase("group_norm_size");
  json["hidden_act"] = "gelu";
  json["use_bias"] = true;
  const std::string error = ErrorOf(json);
  EXPECT_THAT(error, HasSubstr("group_norm_size is missing"));
  EXPECT_THAT(error, HasSubstr("hidden_act"));
  EXPECT_THAT(error, HasSubstr("use_bias"));
}

TEST(ModelConfigTest, WarnsAboutUnknownFields) {
  Json json = Flash();
  json["brand_new_switch"] = true;
  const auto file = ParseModelConfig(json);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(file->warnings,
              ElementsAre(HasSubstr("brand_new_switch = true is not known")));
}

TEST(ModelConfigTest, SaysWhenThereIsNoFile) {
  const auto file = ReadModelConfig("/nonexistent");
  EXPECT_TRUE(absl::IsNotFound(file.status())) << file.status();
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("config.json"));
}

TEST(DecayRatesTest, SlopesOfPowersOfTwo) {
  EXPECT_THAT(HeadSlopes(1), ElementsAre(1.0 / 256));
  EXPECT_THAT(HeadSlopes(4), ElementsAre(0.25, 0.0625, 0.015625, 0.00390625));
  const std::vector<double> flash = HeadSlopes(32);
  EXPECT_NEAR(flash.front(), 0.840896, 1e-6);
  EXPECT_EQ(flash.back(), 0.00390625);
}

// p slopes of the power of two below, then every second slope of 2p.
TEST(DecayRatesTest, SlopesOfOtherHeadCounts) {
  EXPECT_THAT(HeadSlopes(6),
              ElementsAre(0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125));
  EXPECT_THAT(HeadSlopes(3), ElementsAre(0.0625, 0.00390625, 0.25));
}

// Factors of both modes for flash and mini, written down by hand.
TEST(DecayRatesTest, FactorsOfBothModes) {
  const auto factor = [](const char* path, int layer, DecayMode mode) {
    const auto file = ParseModelConfig(FileOf(path));
    const std::vector<float> rates = LayerDecayRates(file->config, layer, mode);
    EXPECT_EQ(rates.size(), size_t(file->config.num_attention_heads));
    // The last head's slope is 2^-8.
    return rates.back() * 256.0;
  };
  const char* flash = "configs/flash.json";
  const char* mini = "configs/mini.json";
  EXPECT_NEAR(factor(flash, 0, DecayMode::kIndex), 1.000010, 1e-6);
  EXPECT_NEAR(factor(flash, 0, DecayMode::kIndexM1), 1.032268, 1e-6);
  EXPECT_NEAR(factor(flash, 1, DecayMode::kIndex), 0.967752, 1e-6);
  EXPECT_NEAR(factor(flash, 1, DecayMode::kIndexM1), 1.000010, 1e-6);
  EXPECT_NEAR(factor(flash, 30, DecayMode::kIndex), 0.032268, 1e-6);
  EXPECT_NEAR(factor(flash, 30, DecayMode::kIndexM1), 0.064526, 1e-6);
  EXPECT_NEAR(factor(mini, 0, DecayMode::kIndexM1), 1.052642, 1e-6);
  EXPECT_NEAR(factor(mini, 18, DecayMode::kIndex), 0.052642, 1e-6);
  EXPECT_NEAR(factor(mini, 18, DecayMode::kIndexM1), 0.105274, 1e-6);
}

}  // namespace
}  // namespace ring
