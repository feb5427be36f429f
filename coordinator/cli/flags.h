// The command line of `ring`.
#pragma once

#include <cstdint>
#include <istream>
#include <optional>
#include <string>
#include <vector>

#include "proto/credentials.h"

namespace ring {

// How to reach a coordinator.
struct ConnectionFlags {
  std::string server = "127.0.0.1:50051";  // HOST:PORT, checked
  TlsFiles tls;
  double timeout_s = 0;  // of a call; 0: none
};

// Written as ID=BIAS.
struct TokenBias {
  TokenBias() = default;  // no aggregate: CLI11 would make one of an id alone
  int32_t id = 0;
  double bias = 0;
};
std::istream& operator>>(std::istream& in, TokenBias& value);

// Options of a completion. What is absent, the server decides.
struct GenerationFlags {
  std::optional<int64_t> max_tokens;
  std::optional<double> temperature;
  std::optional<int32_t> top_k;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<uint64_t> seed;
  std::optional<double> repetition_penalty;
  std::optional<double> presence_penalty;
  std::optional<double> frequency_penalty;
  std::vector<TokenBias> logit_bias;
  std::optional<int64_t> min_tokens;
  bool ignore_eos = false;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_ids;
  bool no_thinking = false;
  std::string system;  // empty: none
};

struct GenerateFlags {
  ConnectionFlags connection;
  GenerationFlags generation;
  // At most one of these; none: the question is read from stdin.
  std::optional<std::string> prompt;
  std::optional<std::string> raw;
  std::optional<std::string> file;
  std::vector<int32_t> ids;
  std::string request_id;  // empty: the server makes one up
  bool logprobs = false;
  std::optional<int32_t> top_logprobs;
  std::optional<int32_t> choices;
  bool json = false;
  bool stats = false;
};

struct ChatFlags {
  ConnectionFlags connection;
  GenerationFlags generation;
};

struct StatusFlags {
  StatusFlags() { connection.timeout_s = 10; }
  ConnectionFlags connection;
  bool json = false;
  bool watch = false;
};

struct BenchFlags {
  ConnectionFlags connection;
  // At most one of these has values, one load each.
  std::vector<int64_t> concurrency;
  std::vector<double> rate;           // requests per second
  std::string prompt_tokens = "128";  // as ParseLengths takes them
  std::string output_tokens = "128";  // the same
  std::string trace;                  // file instead of both; empty: none
  std::optional<int64_t> requests;    // of each load
  std::optional<double> duration_s;   // of each load
  int64_t warmup = 0;                 // requests of each load left out
  uint64_t seed = 1;
  std::optional<double> ttft_limit_ms;
  std::optional<double> itl_limit_ms;
  std::string json;  // file; empty: none
  std::string plot;  // the same
};

struct CommandLine {
  enum class Command { kGenerate, kChat, kBench, kStatus };
  Command command = Command::kGenerate;
  // Only those of `command` are filled in.
  GenerateFlags generate;
  ChatFlags chat;
  BenchFlags bench;
  StatusFlags status;
};

// On --help or a mistake it prints and ends the program: 0 or 2.
CommandLine ParseCommandLine(int argc, char** argv);

}  // namespace ring
