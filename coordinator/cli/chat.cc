// ring chat: a conversation in the terminal.
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <string>

#include "coordinator/cli/answer_printer.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/connection.h"
#include "coordinator/cli/generation.h"

namespace ring {
namespace {

// Starts over, keeping the system message.
void Reset(const ChatFlags& flags, v1::GenerateRequest* request) {
  request->mutable_chat()->clear_messages();
  if (!flags.generation.system.empty()) {
    AddMessage("system", flags.generation.system, request->mutable_chat());
  }
}

// Sends the conversation and adds the answer to it. A failed turn is taken
// back, so that the next one starts from where this one did. `terminated`: the
// program has been told to end.
int TakeTurn(const Connection& connection, const std::string& line,
             v1::GenerateRequest* request, bool* terminated) {
  v1::Chat* chat = request->mutable_chat();
  AddMessage("user", line, chat);
  AnswerPrinter printer(stdout, stdout);
  Generation generation;
  const absl::Status status = RunGeneration(
      connection, *request,
      [&printer](const v1::TokenDelta& delta) {
        printer.Print(delta);
        return CheckWritten();
      },
      &generation);
  printer.Finish();
  *terminated = generation.terminated;
  if (!status.ok()) {
    chat->mutable_messages()->RemoveLast();
    return ReportFailure("chat", connection, status);
  }
  AddMessage("assistant", generation.text, chat);
  return 0;
}

}  // namespace

int RunChat(const ChatFlags& flags) {
  const absl::StatusOr<Connection> connection =
      ReadConnection(flags.connection);
  if (!connection.ok()) return ReportMistake("chat", connection.status());
  const bool terminal = isatty(STDOUT_FILENO) == 1;
  if (terminal) {
    std::printf("/reset starts over, /quit or end of input leaves\n");
  }
  v1::GenerateRequest request;
  Reset(flags, &request);
  SetOptions(flags.generation, &request);
  int exit_code = 0;
  std::string line;
  bool terminated = false;
  while (!terminated) {
    if (terminal) std::printf("> ");
    std::fflush(stdout);
    if (!std::getline(std::cin, line) || line == "/quit") break;
    if (line.empty()) continue;
    if (const absl::Status text = CheckUtf8("the line", line); !text.ok()) {
      exit_code = ReportMistake("chat", text);
      continue;
    }
    if (line == "/reset") {
      Reset(flags, &request);
      continue;
    }
    exit_code = TakeTurn(*connection, line, &request, &terminated);
  }
  if (terminal) std::printf("\n");
  return exit_code;
}

}  // namespace ring
