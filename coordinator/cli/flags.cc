#include "coordinator/cli/flags.h"

#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "kernels/base/flag_mistake.h"
#include "kernels/base/host_port.h"
#include "kernels/base/text_file.h"

namespace ring {
namespace {

// Without it an empty text would be id 0.
const CLI::Range kTokenId(0, std::numeric_limits<int32_t>::max());

std::string CheckHostPort(const std::string& text) {
  return std::string(ParseHostPort(text).status().message());
}

// "@FILE" becomes what FILE holds: the address that --port-file left there.
std::string ReadServer(std::string& text) {
  constexpr int64_t kMaxBytes = 1024;
  if (!text.empty() && text[0] == '@') {
    const auto address = ReadTextFile(text.substr(1), kMaxBytes);
    if (!address.ok()) return std::string(address.status().message());
    text = std::string(absl::StripAsciiWhitespace(*address));
  }
  return CheckHostPort(text);
}

std::string CheckSeed(const std::string& text) {
  uint64_t seed = 0;
  if (absl::SimpleAtoi(text, &seed)) return {};
  return text + " is no number in [0, 2^64)";
}

void AddConnectionFlags(CLI::App* command, ConnectionFlags* flags) {
  command
      ->add_option("--server", flags->server,
                   "HOST:PORT of ring-coordinator, or @FILE that it wrote "
                   "for --port-file")
      ->capture_default_str()
      ->transform(CLI::Validator(ReadServer, ""));
  command->add_option("--tls-ca", flags->tls.ca,
                      "PEM file: authority that signed the server's "
                      "certificate; without it plaintext");
  command->add_option("--tls-cert", flags->tls.cert,
                      "PEM file: certificate to show to the server");
  command->add_option("--tls-key", flags->tls.key,
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
      ->check(CheckSeed);
  command->add_option(
      "--repetition-penalty", flags->repetition_penalty,
      "divides the positive logits of tokens that occur in "
      "prompt or completion, multiplies negative ones; 1: none");
  command->add_option("--presence-penalty", flags->presence_penalty,
                      "subtracted from the logits of tokens that occur in the "
                      "completion; 0: none");
  command->add_option("--frequency-penalty", flags->frequency_penalty,
                      "the same for each time that they occur; 0: none");
  command
      ->add_option("--logit-bias", flags->logit_bias,
                   "added to the logit of a token; may be repeated")
      ->type_name("ID=BIAS")
      ->allow_extra_args(false);
  command->add_option("--min-tokens", flags->min_tokens,
                      "tokens before nothing but --max-tokens and the context "
                      "ends the completion; default: 0");
  command->add_flag("--ignore-eos", flags->ignore_eos,
                    "go on after the model's end-of-sequence tokens");
  command
      ->add_option("--stop", flags->stop,
                   "text that ends the completion; may be repeated")
      ->allow_extra_args(false);
  command
      ->add_option("--stop-ids", flags->stop_ids,
                   "token ids that end the completion: 1,2,3")
      ->delimiter(',')
      ->check(kTokenId);
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
  prompt->add_option("--ids", flags->ids, "token ids: 1,2,3")
      ->delimiter(',')
      ->check(kTokenId);
  prompt->add_option("--file", flags->file,
                     "a file with the question, as --prompt");
  prompt->require_option(0, 1);
  AddGenerationFlags(command, &flags->generation);
  command->add_option("--request-id", flags->request_id,
                      "name of the request, for Abort");
  CLI::Option* json = command->add_flag("--json", flags->json,
                                        "print one JSON object at the end");
  command
      ->add_flag("--logprobs", flags->logprobs,
                 "log probability of each token, in the object of --json")
      ->needs(json);
  command
      ->add_option("--top-logprobs", flags->top_logprobs,
                   "log probabilities of the K most likely tokens at each "
                   "place, in the object of --json")
      ->needs(json);
  command
      ->add_option("--n", flags->choices,
                   "completions of the prompt, in the field choices of the "
                   "object of --json")
      ->needs(json);
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

CLI::App* AddBench(CLI::App* app, BenchFlags* flags) {
  const CLI::Range tokens_or_requests(int64_t{1}, int64_t{1} << 30);
  const CLI::Range seconds(1e-3, 1e6);
  CLI::App* command = app->add_subcommand(
      "bench",
      "latency and throughput of the server under load; exits 0 only when all "
      "requests finished");
  CLI::Option* concurrency =
      command
          ->add_option("--concurrency", flags->concurrency,
                       "requests in flight, the next when one ends: 1,4,16 "
                       "for one load after the other; default: 1")
          ->delimiter(',')
          ->check(CLI::Range(int64_t{1}, int64_t{65536}));
  command
      ->add_option("--rate", flags->rate,
                   "requests per second, at random times (Poisson), whatever "
                   "is in flight: 1,2,4 for one load after the other")
      ->delimiter(',')
      ->check(CLI::Range(1e-3, 1e6))
      ->excludes(concurrency);
  CLI::Option* prompt = command->add_option(
      "--prompt-tokens", flags->prompt_tokens,
      "length of prompts: 128; 128:512 uniform, both included; 256~64 normal, "
      "mean and standard deviation");
  prompt->capture_default_str();
  CLI::Option* output =
      command->add_option("--output-tokens", flags->output_tokens,
                          "length of completions, written likewise");
  output->capture_default_str();
  command
      ->add_option("--trace", flags->trace,
                   "file with one JSON object a line: arrival_s, max_tokens "
                   "and prompt_tokens or text; --rate and --concurrency "
                   "replace the arrivals")
      ->excludes(prompt)
      ->excludes(output);
  command
      ->add_option("--requests", flags->requests,
                   "requests of each load; default: 100, or the whole trace, "
                   "without --duration")
      ->check(tokens_or_requests);
  command
      ->add_option("--duration", flags->duration_s,
                   "seconds in which requests of each load are sent; those in "
                   "flight then still count")
      ->check(seconds);
  command
      ->add_option("--warmup", flags->warmup,
                   "first requests of each load that do not count")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30));
  command
      ->add_option("--seed", flags->seed,
                   "of arrivals, lengths, prompts and sampling")
      ->capture_default_str()
      ->check(CheckSeed);
  command
      ->add_option("--ttft-limit-ms", flags->ttft_limit_ms,
                   "goodput counts requests whose first token comes within")
      ->check(CLI::Range(0.0, 1e9));
  command
      ->add_option("--itl-limit-ms", flags->itl_limit_ms,
                   "and whose mean time between tokens is at most this")
      ->check(CLI::Range(0.0, 1e9));
  command->add_option("--json", flags->json, "write all figures to this file");
  command->add_option("--plot", flags->plot,
                      "draw latency against load to this SVG file");
  AddConnectionFlags(command, &flags->connection);
  return command;
}

CLI::App* AddStatus(CLI::App* app, StatusFlags* flags) {
  CLI::App* command = app->add_subcommand(
      "status",
      "the model, its worker groups and their load; exits 0 only when a group "
      "serves");
  command->add_flag("--json", flags->json, "print one JSON object");
  command->add_flag("--watch", flags->watch,
                    "again every second until Ctrl-C: drawn in place on a "
                    "terminal, else one line each time");
  AddConnectionFlags(command, &flags->connection);
  return command;
}

[[noreturn]] void EndWithMistake(const std::string& message) {
  std::fprintf(stderr, "ring: %s\n", message.c_str());
  std::exit(2);
}

[[noreturn]] void ExitWithoutCommand(const std::string& what) {
  EndWithMistake(what + ": use generate, chat, bench or status (ring --help)");
}

// Help and the version are "errors" with code 0.
[[noreturn]] void EndWith(const CLI::App& app, const CLI::ParseError& error) {
  if (error.get_exit_code() == 0) std::exit(app.exit(error));
  EndWithMistake(FlagMistake(error.get_name(), error.what()));
}

}  // namespace

std::istream& operator>>(std::istream& in, TokenBias& value) {
  char equals = 0;
  in >> value.id >> equals >> value.bias;
  if (equals != '=') in.setstate(std::ios::failbit);
  return in;
}

CommandLine ParseCommandLine(int argc, char** argv) {
  CommandLine line;
  CLI::App app("ring: client of ring-coordinator");
  app.set_config("--config", "",
                 "read options of the same names from FILE, in a section "
                 "named like the command");
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.set_version_flag("--version", "ringmaster " RING_VERSION);
  app.require_subcommand(0, 1);  // none: said below
  AddGenerate(&app, &line.generate);
  const CLI::App* chat = AddChat(&app, &line.chat);
  const CLI::App* bench = AddBench(&app, &line.bench);
  const CLI::App* status = AddStatus(&app, &line.status);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ExtrasError& error) {
    // A word where a command should stand is no mere extra argument.
    if (!app.get_subcommands().empty()) EndWith(app, error);
    ExitWithoutCommand("\"" + app.remaining().front() +
                       "\" is no command of ring");
  } catch (const CLI::ParseError& error) {
    EndWith(app, error);
  }
  if (app.get_subcommands().empty()) ExitWithoutCommand("no command is given");
  if (chat->parsed()) line.command = CommandLine::Command::kChat;
  if (bench->parsed()) line.command = CommandLine::Command::kBench;
  if (status->parsed()) line.command = CommandLine::Command::kStatus;
  return line;
}

}  // namespace ring
