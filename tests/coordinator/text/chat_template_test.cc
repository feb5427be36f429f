#include "coordinator/text/chat_template.h"

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/model_files/json.h"

namespace ring {
namespace {

using ::testing::HasSubstr;

// A model folder that is gone after the test.
class ChatTemplateTest : public testing::Test {
 protected:
  ChatTemplateTest()
      : folder_(testing::TempDir() + "/chat_template_test_" +
                testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::create_directories(folder_);
  }
  ~ChatTemplateTest() override { std::filesystem::remove_all(folder_); }

  void Write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ + "/" + name, std::ios::binary) << text;
  }
  absl::StatusOr<std::unique_ptr<ChatTemplate>> Load() {
    return ChatTemplate::Load(folder_);
  }
  absl::StatusOr<std::string> Render(const std::string& source,
                                     const ChatRequest& request) {
    Write("chat_template.jinja", source);
    auto chat = Load();
    if (!chat.ok()) return chat.status();
    return (*chat)->Render(request);
  }

  const std::string folder_;
};

TEST(ChatTemplateGoldenTest, RendersAllVectors) {
  const auto chat = ChatTemplate::Load(RING_TEST_DATA "/ring-tiny");
  ASSERT_TRUE(chat.ok()) << chat.status();
  const auto goldens =
      ReadJsonFile(RING_TEST_DATA "/golden/golden_public.json");
  ASSERT_EQ((*goldens)["chat"].size(), 24u);
  for (const Json& golden : (*goldens)["chat"]) {
    ChatRequest request;
    for (const Json& message : golden["messages"]) {
      request.messages.push_back({message["role"], message["content"], {}, ""});
    }
    request.add_generation_prompt = golden["add_generation_prompt"];
    if (!golden["enable_thinking"].is_null()) {
      request.enable_thinking = golden["enable_thinking"].get<bool>();
    }
    const auto text = (*chat)->Render(request);
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_EQ(*text, golden["text"].get<std::string>());
  }
}

TEST_F(ChatTemplateTest, TheFileWinsOverTheConfig) {
  Write("tokenizer_config.json", R"({"chat_template": "config"})");
  EXPECT_EQ((*Load())->source(), "config");
  Write("chat_template.jinja", "file");
  EXPECT_EQ((*Load())->source(), "file");
}

TEST_F(ChatTemplateTest, TakesTheDefaultOfNamedTemplates) {
  Write("tokenizer_config.json",
        R"({"chat_template": [{"name": "tool_use", "template": "t"},
                              {"name": "default", "template": "d"}]})");
  EXPECT_EQ((*Load())->source(), "d");
  Write("tokenizer_config.json",
        R"({"chat_template": [{"name": "tool_use", "template": "t"}]})");
  EXPECT_EQ(Load().status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ChatTemplateTest, NoTemplateIsNotFound) {
  EXPECT_EQ(Load().status().code(), absl::StatusCode::kNotFound);
  Write("tokenizer_config.json", "{}");
  EXPECT_EQ(Load().status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ChatTemplateTest, RefusesADamagedConfig) {
  Write("chat_template.jinja", "x");
  for (const char* config : {"[]", "{", R"({"bos_token": 5})"}) {
    Write("tokenizer_config.json", config);
    EXPECT_EQ(Load().status().code(), absl::StatusCode::kInvalidArgument);
  }
  Write("tokenizer_config.json", "{}");
  Write("chat_template.jinja", "a\n{% include 'b' %}");
  EXPECT_THAT(Load().status().message(),
              HasSubstr("line 2: the tag 'include'"));
}

TEST_F(ChatTemplateTest, SpecialTokensAreVariables) {
  Write("tokenizer_config.json",
        R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}})");
  EXPECT_EQ(*Render("{{ bos_token }}{{ eos_token }}{{ pad_token }}", {}),
            "<s></s>");
}

TEST_F(ChatTemplateTest, KeepsTheOrderOfKeysInTools) {
  ChatRequest request;
  request.tools_json = R"([{"type": "function", "name": "z", "a": 1}])";
  request.messages.push_back(
      {"assistant", "", "why", R"([{"z": {"b": 1, "a": 2}}])"});
  EXPECT_EQ(
      *Render("{{ tools[0] | tojson }} {{ messages[0] | tojson }}", request),
      R"({"type": "function", "name": "z", "a": 1} )"
      R"({"role": "assistant", "content": "", )"
      R"("reasoning_content": "why", )"
      R"("tool_calls": [{"z": {"b": 1, "a": 2}}]})");
}

TEST_F(ChatTemplateTest, AbsentPartsAreNoneOrUndefined) {
  ChatRequest request;
  request.messages.push_back({"user", "x", {}, ""});
  EXPECT_EQ(*Render("{{ tools }} {{ documents }} "
                    "{{ enable_thinking is defined }} "
                    "{{ messages[0].tool_calls is defined }} "
                    "{{ messages[0].reasoning_content is defined }}",
                    request),
            "None None False False False");
}

TEST_F(ChatTemplateTest, ExtraVariablesMustBeNew) {
  ChatRequest request;
  request.extra_variables_json = R"({"effort": "high"})";
  EXPECT_EQ(*Render("{{ effort }}", request), "high");
  for (const char* extra :
       {R"({"messages": []})", R"({"tools": 1})", R"({"enable_thinking": 1})",
        R"({"raise_exception": 1})", "[]", "{"}) {
    request.extra_variables_json = extra;
    EXPECT_EQ(Render("x", request).status().code(),
              absl::StatusCode::kInvalidArgument)
        << extra;
  }
}

TEST_F(ChatTemplateTest, NamesWhatIsWrongWithTheMessages) {
  ChatRequest request;
  request.messages = {{"user", "a", {}, ""}, {"user", "ab\xFF", {}, ""}};
  EXPECT_THAT(Render("x", request).status().message(),
              HasSubstr("messages[1].content is not UTF-8 at byte 2"));
  request.messages = {{"user", "a", {}, "{}"}};
  EXPECT_THAT(Render("x", request).status().message(),
              HasSubstr("messages[0].tool_calls is not a list"));
  request.messages = {};
  request.tools_json = "[";
  EXPECT_THAT(Render("x", request).status().message(), HasSubstr("tools"));
}

TEST_F(ChatTemplateTest, QuotesWhatTheTemplateRaises) {
  const auto text = Render(
      "{% if not messages %}\n{{ raise_exception('no messages') }}"
      "{% endif %}",
      {});
  EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(text.status().message(), HasSubstr("line 2"));
  EXPECT_THAT(text.status().message(), HasSubstr("no messages"));
}

TEST_F(ChatTemplateTest, TheClockIsTheCallers) {
  Write("chat_template.jinja", "{{ strftime_now('%d %b %Y') }}");
  const auto chat = ChatTemplate::Load(folder_, [] {
    return absl::FromCivil(absl::CivilDay(2024, 2, 29), absl::LocalTimeZone());
  });
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(*(*chat)->Render({}), "29 Feb 2024");
}

}  // namespace
}  // namespace ring
