// Renders templates for jinja_differential.py: reads one JSON object per line
// from standard input, {"template": text, "variables": object}, and writes one
// per line: {"text": what was rendered} or {"error": message}.
#include <iostream>
#include <string>

#include "absl/time/clock.h"
#include "coordinator/text/jinja/interpreter.h"
#include "coordinator/text/jinja/parser.h"
#include "coordinator/text/jinja/value_json.h"
#include "kernels/base/status_macros.h"
#include "worker/model_files/json.h"

namespace ring::jinja {
namespace {

absl::StatusOr<std::string> RenderCase(const std::string& line) {
  RING_ASSIGN_OR_RETURN(const Value value, ValueFromJson(line, "case"));
  const std::string& source = value.dict().Find("template")->string();
  RING_ASSIGN_OR_RETURN(const Body body, Parse(source));
  return Render(body, value.dict().Find("variables")->dict(), absl::Now,
                Limits());
}

}  // namespace
}  // namespace ring::jinja

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    const absl::StatusOr<std::string> text = ring::jinja::RenderCase(line);
    ring::Json reply;
    if (text.ok()) {
      reply["text"] = *text;
    } else {
      reply["error"] = std::string(text.status().message());
    }
    std::cout << reply.dump() << std::endl;
  }
  return 0;
}
