// What the comparison with python3-jinja2 cannot show: limits, lines, damage.
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "coordinator/text/jinja/interpreter.h"
#include "coordinator/text/jinja/parser.h"
#include "coordinator/text/jinja/value_json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"

namespace ring::jinja {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<std::string> RenderText(const std::string& source,
                                       const Limits& limits = {}) {
  RING_ASSIGN_OR_RETURN(const Body body, Parse(source));
  return Render(body, Dict(), absl::Now, limits);
}

std::string Repeat(const std::string& text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

TEST(JinjaLimitsTest, EndlessWorkEnds) {
  for (const char* source : {
           "{% for x in range(1000000000000) %}x{% endfor %}",
           "{% set r = range(1000) %}{% for a in r %}{% for b in r %}"
           "{% for c in r %}{% endfor %}{% endfor %}{% endfor %}",
           "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
           "{{ [1] * 1000000000 }}",
           "{% set ns = namespace(x=[0]) %}{% for i in range(60) %}"
           "{% set ns.x = ns.x + ns.x %}{% endfor %}",
           "{% set ns = namespace(x=[]) %}{% for i in range(200) %}"
           "{% set ns.x = [ns.x] %}{% endfor %}",
       }) {
    Limits limits;
    limits.work = 1'000'000;
    const auto text = RenderText(source, limits);
    EXPECT_EQ(text.status().code(), absl::StatusCode::kResourceExhausted)
        << source << ": " << text.status();
    EXPECT_THAT(text.status().message(), HasSubstr("line 1"));
  }
}

TEST(JinjaLimitsTest, StringsAreBounded) {
  Limits limits;
  limits.string_bytes = 1000;
  for (const char* source : {
           "{{ 'x' * 1001 }}",
           "{% for i in range(101) %}0123456789{% endfor %}",
           "{% for i in range(101) %}{{ '0123456789' }}{% endfor %}",
           "{% set ns = namespace(s='x') %}{% for i in range(20) %}"
           "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
           "{% set ns = namespace(s='x') %}{% for i in range(20) %}"
           "{% set ns.s = ns.s + ns.s %}{% endfor %}",
           "{{ ('x' * 500).replace('x', 'abc') }}",
           "{{ ('x' * 500) | replace('', 'abc') }}",
           "{{ ['x' * 500, 'y' * 501] | join }}",
           "{{ 'y'.join(['x' * 500, 'x' * 500]) }}",
       }) {
    EXPECT_EQ(RenderText(source, limits).status().code(),
              absl::StatusCode::kResourceExhausted)
        << source;
  }
  EXPECT_EQ(RenderText("{{ 'x' * 1000 }}", limits)->size(), 1000u);
}

TEST(JinjaLimitsTest, NestingIsBounded) {
  for (const std::string& source : {
           "{{ " + Repeat("(", 20000) + "1" + Repeat(")", 20000) + " }}",
           "{{ " + Repeat("[", 20000) + Repeat("]", 20000) + " }}",
           "{{ " + Repeat("not ", 20000) + "1 }}",
           "{{ " + Repeat("-", 20000) + "1 }}",
           "{{ 1" + Repeat(" + 1", 20000) + " }}",
           "{{ x" + Repeat(".a", 20000) + " }}",
           "{{ x" + Repeat("[0]", 20000) + " }}",
           "{{ x" + Repeat("|list", 20000) + " }}",
           "{{ x" + Repeat(" if x else x", 20000) + " }}",
           "{{ x" + Repeat(" if x", 20000) + " }}",
           "{{ x" + Repeat(" and x", 20000) + " }}",
           Repeat("{% if x %}", 20000),
           Repeat("{% for x in y %}", 20000),
           Repeat("{% set x %}", 20000),
       }) {
    EXPECT_THAT(Parse(source).status().message(), HasSubstr("too deeply"))
        << source.substr(0, 40);
  }
}

TEST(JinjaErrorTest, NamesTheLine) {
  EXPECT_THAT(Parse("a\n{{ 'x\ny' }}\n{% for x in y %}\n").status().message(),
              HasSubstr("line 4: 'else' or 'endfor' is missing"));
  EXPECT_THAT(Parse("a\n\n{#-\n-#}\n\n{{ x | nope }}").status().message(),
              HasSubstr("line 6: the filter 'nope'"));
  EXPECT_THAT(RenderText("a\n{% if true %}\n  {{ x.y }}\n{% endif %}")
                  .status()
                  .message(),
              HasSubstr("line 3: 'x' is undefined"));
  EXPECT_THAT(Parse("a\xFF").status().message(), HasSubstr("byte 1"));
}

TEST(JinjaThreadTest, OneTemplateRendersOnManyThreads) {
  const auto body = Parse(
      "{% macro m(x) %}<{{ x }}>{% endmacro %}"
      "{% for x in ['a', 'b'] | map('upper') %}{{ m(x) }}{% endfor %}");
  ASSERT_TRUE(body.ok()) << body.status();
  const Dict variables;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 100; ++round) {
        EXPECT_EQ(*Render(*body, variables, absl::Now, {}), "<A><B>");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(ValueFromJsonTest, RefusesWhatItCannotKeep) {
  EXPECT_EQ(ValueFromJson("9223372036854775807", "n")->integer(), INT64_MAX);
  for (const char* json : {"9223372036854775808", "123456789012345678901234",
                           "-9223372036854775809", R"({"a": 1, "a": 2})",
                           "[1,]", "", "nul", "\"\xFF\""}) {
    const auto value = ValueFromJson(json, "tools");
    EXPECT_EQ(value.status().code(), absl::StatusCode::kInvalidArgument)
        << json;
    EXPECT_THAT(value.status().message(), HasSubstr("tools"));
  }
  EXPECT_FALSE(ValueFromJson(Repeat("[", 20000), "tools").ok());
}

}  // namespace
}  // namespace ring::jinja
