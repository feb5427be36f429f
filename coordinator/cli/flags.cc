#include "coordinator/cli/flags.h"

#include <cstdlib>

#include "CLI/CLI.hpp"

namespace ring {
namespace {

void AddConnectionFlags(CLI::App* command, ConnectionFlags* flags) {
  command
      ->add_option("--server", flags->server, "HOST:PORT of ring-coordinator")
      ->capture_default_str();
  command->add_option("--tls-ca", flags->tls_ca,
                      "PEM file: authority that signed the server's "
                      "certificate; without it plaintext");
  command->add_option("--tls-cert", flags->tls_cert,
                      "PEM file: certificate to show to the server");
  command->add_option("--tls-key", flags->tls_key,
                      "PEM file: the key of --tls-cert");
  command
      ->add_option("--timeout", flags->timeout_s,
                   "seconds until a call is given up; 0: never")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1e6));
}

void AddGenerationFlags(CLI::App* command, GenerationFlags* flags) {
  command->add_option("--system", flags->system, "system message of the chat");
  command->add_option("--max-tokens", flags->max_tokens,
                      "tokens of the completion; default: what fits the "
                      "context");
  command->add_option("--temperature", flags->temperature,
                      "0: greedy; default: the model's generation config");
  command->add_option("--top-k", flags->top_k,
                      "keep the K most likely tokens; 0: all");
  command->add_option("--top-p", flags->top_p,
                      "keep the smallest set with this probability; 1: all");
  command->add_option("--min-p", flags->min_p,
                      "keep tokens with this share of the best one's "
                      "probability; 0: all");
  command
      ->add_option("--seed", flags->seed,
                   "of the random numbers; default: drawn by the server")
      ->check(CLI::NonNegativeNumber);
  command
      ->add_option("--stop", flags->stop,
                   "text that ends the completion; may be repeated")
      ->allow_extra_args(false);
  command
      ->add_option("--stop-ids", flags->stop_ids,
                   "token ids that end the completion: 1,2,3")
      ->delimiter(',');
  command->add_flag("--no-thinking", flags->no_thinking,
                    "ask the chat template for an answer without reasoning");
}

CLI::App* AddGenerate(CLI::App* app, GenerateFlags* flags) {
  CLI::App* command = app->add_subcommand(
      "generate",
      "one completion; without a prompt the question is read from stdin");
  CLI::Option_group* prompt =
      command->add_option_group("prompt", "what is completed");
  prompt->add_option("--prompt", flags->prompt,
                     "a question, through the chat template");
  prompt->add_option("--raw", flags->raw,
                     "text as it stands; special tokens in it are recognised");
  prompt->add_option("--ids", flags->ids, "token ids: 1,2,3")->delimiter(',');
  prompt->add_option("--file", flags->file,
                     "a file with the question, as --prompt");
  prompt->require_option(0, 1);
  AddGenerationFlags(command, &flags->generation);
  command->add_option("--request-id", flags->request_id,
                      "name of the request, for Abort");
  command->add_flag("--logprobs", flags->logprobs,
                    "log probability of each token (with --json)");
  command->add_flag("--json", flags->json, "print one JSON object at the end");
  command->add_flag("--stats", flags->stats,
                    "print tokens, times and tokens per second to stderr");
  AddConnectionFlags(command, &flags->connection);
  return command;
}

CLI::App* AddChat(CLI::App* app, ChatFlags* flags) {
  CLI::App* command = app->add_subcommand(
      "chat", "a conversation, one line per turn; exit code of the last turn");
  AddGenerationFlags(command, &flags->generation);
  AddConnectionFlags(command, &flags->connection);
  return command;
}

CLI::App* AddStatus(CLI::App* app, StatusFlags* flags) {
  CLI::App* command = app->add_subcommand(
      "status",
      "the model, its worker groups and their load; exits 0 only when a group "
      "serves");
  command->add_flag("--json", flags->json, "print one JSON object");
  AddConnectionFlags(command, &flags->connection);
  return command;
}

}  // namespace

CommandLine ParseCommandLine(int argc, char** argv) {
  CommandLine line;
  CLI::App app("ring: client of ring-coordinator");
  app.set_config("--config", "",
                 "read options of the same names from FILE, in a section "
                 "named like the command");
  app.require_subcommand(1);
  AddGenerate(&app, &line.generate);
  const CLI::App* chat = AddChat(&app, &line.chat);
  const CLI::App* status = AddStatus(&app, &line.status);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::exit(app.exit(error) == 0 ? 0 : 2);
  }
  if (chat->parsed()) line.command = CommandLine::Command::kChat;
  if (status->parsed()) line.command = CommandLine::Command::kStatus;
  return line;
}

}  // namespace ring
