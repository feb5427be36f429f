#include "coordinator/request_limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "coordinator/unknown_fields.h"
#include "google/protobuf/descriptor.h"

namespace ring {
namespace {

using ::testing::HasSubstr;

// A model without a tokenizer: options need none.
const ServedModel& Model() {
  static const ServedModel* const model = [] {
    auto* made = new ServedModel;
    made->num_token_ids = 100;
    made->defaults = {.temperature = 0.6,
                      .top_k = 20,
                      .top_p = 0.9,
                      .repetition_penalty = 1.1};
    return made;
  }();
  return *model;
}

std::string Error(const v1::GenerateRequest& request) {
  const auto options = ReadOptions(request, Model());
  EXPECT_EQ(options.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(options.status().message());
}

TEST(RequestLimitsTest, MissingOptionsAreTheModels) {
  const auto options = ReadOptions(v1::GenerateRequest(), Model());
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->temperature, 0.6);
  EXPECT_EQ(options->top_k, 20);
  EXPECT_EQ(options->top_p, 0.9);
  EXPECT_EQ(options->min_p, 0);
  EXPECT_EQ(options->repetition_penalty, 1.1);
  EXPECT_EQ(options->presence_penalty, 0);
  EXPECT_EQ(options->frequency_penalty, 0);
  EXPECT_EQ(options->min_tokens, 0);
  EXPECT_FALSE(options->ignore_eos);
  EXPECT_EQ(options->max_tokens, 0);
  EXPECT_TRUE(options->split_reasoning);
}

TEST(RequestLimitsTest, PresentOptionsWinEvenWhenZero) {
  v1::GenerateRequest request;
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_top_k(0);
  request.mutable_sampling()->set_seed(0);
  request.mutable_output()->set_split_reasoning(false);
  const auto options = ReadOptions(request, Model());
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->temperature, 0);
  EXPECT_EQ(options->top_k, 0);
  EXPECT_EQ(options->seed, 0u);
  EXPECT_FALSE(options->split_reasoning);
}

TEST(RequestLimitsTest, DrawsASeedForEachRequest) {
  const auto first = ReadOptions(v1::GenerateRequest(), Model());
  const auto second = ReadOptions(v1::GenerateRequest(), Model());
  EXPECT_NE(first->seed, second->seed);
}

TEST(RequestLimitsTest, EchoesTheValuesInEffect) {
  v1::GenerateRequest request;
  request.mutable_sampling()->set_top_p(0.5);
  request.mutable_sampling()->set_presence_penalty(-0.25);
  request.mutable_sampling()->set_frequency_penalty(0.5);
  v1::LogitBias* const bias = request.mutable_sampling()->add_logit_bias();
  bias->set_token_id(7);
  bias->set_bias(-3.5);
  request.mutable_stopping()->add_stop_strings("END");
  request.mutable_stopping()->set_min_tokens(4);
  request.mutable_stopping()->set_ignore_eos(true);
  request.mutable_output()->set_top_logprobs(7);
  request.mutable_output()->set_choices(5);
  const auto options = ReadOptions(request, Model());
  v1::Accepted accepted;
  EchoOptions(*options, &accepted);
  EXPECT_EQ(accepted.sampling().temperature(), 0.6);
  EXPECT_EQ(accepted.sampling().top_p(), 0.5);
  EXPECT_EQ(accepted.sampling().seed(), options->seed);
  EXPECT_EQ(accepted.sampling().repetition_penalty(), 1.1);
  EXPECT_EQ(accepted.sampling().presence_penalty(), -0.25);
  EXPECT_EQ(accepted.sampling().frequency_penalty(), 0.5);
  ASSERT_EQ(accepted.sampling().logit_bias_size(), 1);
  EXPECT_EQ(accepted.sampling().logit_bias(0).token_id(), 7);
  EXPECT_EQ(accepted.sampling().logit_bias(0).bias(), -3.5);
  EXPECT_EQ(accepted.stopping().stop_strings(0), "END");
  EXPECT_EQ(accepted.stopping().min_tokens(), 4);
  EXPECT_TRUE(accepted.stopping().ignore_eos());
  EXPECT_EQ(accepted.output().top_logprobs(), 7);
  EXPECT_EQ(accepted.output().choices(), 5);
  // What is echoed is itself a valid request with the same meaning.
  v1::GenerateRequest again;
  *again.mutable_sampling() = accepted.sampling();
  *again.mutable_output() = accepted.output();
  EXPECT_TRUE(ReadOptions(again, Model()).ok());
}

// Sets a numeric field by its name, as a client would.
void Set(const std::string& name, double value, v1::GenerateRequest* request) {
  for (google::protobuf::Message* part :
       {static_cast<google::protobuf::Message*>(request->mutable_sampling()),
        static_cast<google::protobuf::Message*>(request->mutable_stopping()),
        static_cast<google::protobuf::Message*>(request->mutable_output())}) {
    const auto* field = part->GetDescriptor()->FindFieldByName(name);
    if (field == nullptr) continue;
    const auto* reflection = part->GetReflection();
    switch (field->cpp_type()) {
      case google::protobuf::FieldDescriptor::CPPTYPE_INT32:
        reflection->SetInt32(part, field, static_cast<int32_t>(value));
        return;
      case google::protobuf::FieldDescriptor::CPPTYPE_INT64:
        reflection->SetInt64(part, field, static_cast<int64_t>(value));
        return;
      default:
        reflection->SetDouble(part, field, value);
        return;
    }
  }
  FAIL() << name << " is no option";
}

TEST(RequestLimitsTest, RangesHoldAtTheirEnds) {
  struct Case {
    const char* name;
    double good_low, good_high, bad_low, bad_high;
  };
  // The ranges of the interface, written down once more.
  for (const Case& c :
       {Case{"temperature", 0, 100, -0.001, 100.001},
        Case{"top_k", 0, 1048576, -1, 1048577},
        Case{"top_p", 1e-6, 1, 0, 1.0001}, Case{"min_p", 0, 1, -0.001, 1.001},
        Case{"max_tokens", 1, 1 << 30, 0, (1 << 30) + 1.0},
        Case{"repetition_penalty", 1e-6, 10, 0, 10.001},
        Case{"presence_penalty", -2, 2, -2.001, 2.001},
        Case{"frequency_penalty", -2, 2, -2.001, 2.001},
        Case{"min_tokens", 0, 1 << 30, -1, (1 << 30) + 1.0},
        Case{"choices", 1, 16, 0, 17}, Case{"top_logprobs", 0, 20, -1, 21},
        Case{"prompt_logprobs", 0, 20, -1, 21}}) {
    for (const double good : {c.good_low, c.good_high}) {
      v1::GenerateRequest request;
      Set(c.name, good, &request);
      EXPECT_TRUE(ReadOptions(request, Model()).ok()) << c.name << " " << good;
    }
    for (const double bad : {c.bad_low, c.bad_high}) {
      v1::GenerateRequest request;
      Set(c.name, bad, &request);
      EXPECT_THAT(Error(request), HasSubstr(c.name)) << bad;
    }
  }
}

TEST(RequestLimitsTest, EveryNumericOptionHasARange) {
  for (const auto* type :
       {v1::Sampling::descriptor(), v1::Stopping::descriptor(),
        v1::Output::descriptor()}) {
    for (int i = 0; i < type->field_count(); ++i) {
      const auto* field = type->field(i);
      const bool numeric =
          !field->is_repeated() &&
          (field->cpp_type() ==
               google::protobuf::FieldDescriptor::CPPTYPE_INT32 ||
           field->cpp_type() ==
               google::protobuf::FieldDescriptor::CPPTYPE_INT64 ||
           field->cpp_type() ==
               google::protobuf::FieldDescriptor::CPPTYPE_DOUBLE);
      if (!numeric) continue;
      int rows = 0;
      for (const OptionLimit& limit : OptionLimits()) {
        if (limit.name == field->name()) ++rows;
      }
      EXPECT_EQ(rows, 1) << field->full_name();
    }
  }
}

TEST(RequestLimitsTest, MessagesNameValueAndRange) {
  v1::GenerateRequest request;
  request.mutable_sampling()->set_temperature(-1);
  EXPECT_EQ(Error(request), "temperature = -1 is not in [0, 100]");
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_top_p(0);
  EXPECT_EQ(Error(request), "top_p = 0 is not in (0, 1]");
  request.mutable_sampling()->clear_top_p();
  request.mutable_sampling()->set_top_k(2000000);
  EXPECT_EQ(Error(request), "top_k = 2000000 is not in [0, 1048576]");
  request.mutable_sampling()->clear_top_k();
  request.mutable_sampling()->set_repetition_penalty(0);
  EXPECT_EQ(Error(request), "repetition_penalty = 0 is not in (0, 10]");
  request.mutable_sampling()->set_repetition_penalty(1.5);
  request.mutable_output()->set_top_logprobs(21);
  EXPECT_EQ(Error(request), "top_logprobs = 21 is not in [0, 20]");
  request.mutable_output()->clear_top_logprobs();
  request.mutable_output()->set_choices(17);
  EXPECT_EQ(Error(request), "choices = 17 is not in [1, 16]");
}

TEST(RequestLimitsTest, NanIsInNoRange) {
  v1::GenerateRequest request;
  request.mutable_sampling()->set_temperature(
      std::numeric_limits<double>::quiet_NaN());
  EXPECT_THAT(Error(request), HasSubstr("temperature = nan"));
}

TEST(RequestLimitsTest, PromptLogprobsAreAskedForByPresence) {
  v1::GenerateRequest request;
  v1::Accepted accepted;
  EXPECT_FALSE(ReadOptions(request, Model())->prompt_logprobs.has_value());
  EchoOptions(*ReadOptions(request, Model()), &accepted);
  EXPECT_FALSE(accepted.output().has_prompt_logprobs());
  request.mutable_output()->set_prompt_logprobs(0);
  EXPECT_EQ(ReadOptions(request, Model())->prompt_logprobs, 0);
  EchoOptions(*ReadOptions(request, Model()), &accepted);
  EXPECT_TRUE(accepted.output().has_prompt_logprobs());
}

TEST(RequestLimitsTest, MinTokensIsAtMostMaxTokens) {
  v1::GenerateRequest request;
  request.mutable_stopping()->set_max_tokens(3);
  request.mutable_stopping()->set_min_tokens(3);
  EXPECT_TRUE(ReadOptions(request, Model()).ok());
  request.mutable_stopping()->set_min_tokens(4);
  EXPECT_EQ(Error(request), "min_tokens = 4 is not in [0, max_tokens = 3]");
  request.mutable_stopping()->clear_max_tokens();  // as long as fits
  EXPECT_TRUE(ReadOptions(request, Model()).ok());
}

TEST(RequestLimitsTest, BiasesAreFewAndOfIdsThatExist) {
  v1::GenerateRequest request;
  v1::LogitBias* bias = request.mutable_sampling()->add_logit_bias();
  for (const double good : {-100.0, 0.0, 100.0}) {
    bias->set_bias(good);
    EXPECT_TRUE(ReadOptions(request, Model()).ok()) << good;
  }
  bias->set_bias(100.5);
  EXPECT_EQ(Error(request), "logit_bias of id 0 = 100.5 is not in [-100, 100]");
  bias->set_bias(std::numeric_limits<double>::quiet_NaN());
  EXPECT_THAT(Error(request), HasSubstr("= nan is not in"));
  bias->set_bias(1);
  for (const int32_t id : {-1, 100}) {
    bias->set_token_id(id);
    EXPECT_THAT(Error(request), HasSubstr("is not in [0, 99]"));
  }
  bias->set_token_id(99);
  request.mutable_sampling()->add_logit_bias()->set_token_id(99);
  EXPECT_EQ(Error(request), "logit_bias has id 99 twice");
  for (int i = 2; i < 1025; ++i) request.mutable_sampling()->add_logit_bias();
  EXPECT_EQ(Error(request),
            "logit_bias has 1025 entries, at most 1024 are "
            "allowed");
}

TEST(RequestLimitsTest, BoundsNamesAndLists) {
  v1::GenerateRequest request;
  request.set_request_id(std::string(129, 'a'));
  EXPECT_THAT(Error(request), HasSubstr("129 bytes, at most 128"));
  request.set_request_id("line\nbreak");
  EXPECT_THAT(Error(request),
              HasSubstr("request_id: byte 4 is 0x0a, not printable ASCII"));
  request.set_request_id(std::string(128, 'a'));
  EXPECT_TRUE(ReadOptions(request, Model()).ok());

  v1::Stopping* stopping = request.mutable_stopping();
  stopping->add_stop_strings("");
  EXPECT_THAT(Error(request), HasSubstr("0 bytes"));
  stopping->set_stop_strings(0, std::string(1025, 'a'));
  EXPECT_THAT(Error(request), HasSubstr("1025 bytes"));
  stopping->clear_stop_strings();
  for (int i = 0; i < 17; ++i) stopping->add_stop_strings("a");
  EXPECT_THAT(Error(request), HasSubstr("17 entries, at most 16"));
  stopping->clear_stop_strings();
  stopping->add_stop_token_ids(100);
  EXPECT_THAT(Error(request), HasSubstr("100 is not in [0, 99]"));
  stopping->clear_stop_token_ids();
  for (int i = 0; i < 65; ++i) stopping->add_stop_token_ids(1);
  EXPECT_THAT(Error(request), HasSubstr("65 entries, at most 64"));
}

TEST(RequestLimitsTest, UnknownFieldsAreRefused) {
  v1::GenerateRequest top;
  top.GetReflection()->MutableUnknownFields(&top)->AddVarint(1000, 1);
  EXPECT_THAT(Error(top),
              HasSubstr("GenerateRequest has no field number 1000"));

  v1::GenerateRequest deep;
  v1::ChatMessage* message = deep.mutable_chat()->add_messages();
  message->GetReflection()->MutableUnknownFields(message)->AddVarint(9, 1);
  EXPECT_THAT(Error(deep), HasSubstr("ChatMessage has no field number 9"));
}

// No request has an enum yet.
TEST(UnknownFieldsTest, UnknownEnumValuesAreRefused) {
  v1::GenerateEvent event;
  event.mutable_finished()->set_reason(v1::FINISH_REASON_EOS);
  EXPECT_TRUE(CheckAllFieldsKnown(event).ok());
  event.mutable_finished()->set_reason(static_cast<v1::FinishReason>(77));
  EXPECT_THAT(std::string(CheckAllFieldsKnown(event).message()),
              HasSubstr("reason = 77 is not a value of ring.v1.FinishReason"));
}

}  // namespace
}  // namespace ring
