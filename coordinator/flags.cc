#include "coordinator/flags.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "CLI/CLI.hpp"
#include "kernels/base/flag_mistake.h"

namespace ring {
namespace {

[[noreturn]] void EndWithMistake(const std::string& message) {
  std::fprintf(stderr, "ring-coordinator: %s\n", message.c_str());
  std::exit(2);
}

// Help and the version are "errors" with code 0.
[[noreturn]] void EndWith(const CLI::App& app, const CLI::ParseError& error) {
  if (error.get_exit_code() == 0) std::exit(app.exit(error));
  EndWithMistake(FlagMistake(error.get_name(), error.what()));
}

}  // namespace

CoordinatorFlags ParseFlags(int argc, char** argv) {
  CoordinatorFlags flags;
  flags.server.listen = "127.0.0.1:50051";  // where `ring` looks by default
  double drain_timeout_s = 30;
  CLI::App app(
      "ring-coordinator: takes requests over gRPC and shards them over the "
      "worker groups that join it");
  app.set_config("--config", "", "read options of the same names from FILE");
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.set_version_flag("--version", "ringmaster " RING_VERSION);
  app.add_option("--model", flags.model_dir,
                 "Hugging Face folder of the model: config, tokenizer, chat "
                 "template; weights are not read; required")
      ->check(CLI::ExistingDirectory);
  app.add_option("--listen", flags.server.listen,
                 "HOST:PORT for clients and workers; port 0: any free one")
      ->capture_default_str();
  app.add_option("--port-file", flags.port_file,
                 "write HOST:PORT to this file once the port is bound");
  app.add_option("--tls-cert", flags.server.tls.cert,
                 "PEM file: the certificate that is shown to clients");
  app.add_option("--tls-key", flags.server.tls.key,
                 "PEM file: the key of --tls-cert");
  app.add_option("--tls-ca", flags.server.tls.ca,
                 "PEM file: clients and workers must show a certificate that "
                 "this authority has signed");
  app.add_flag("--insecure", flags.server.insecure,
               "allow plaintext on an address that is not loopback");
  app.add_option("--max-queued", flags.server.max_queued,
                 "requests that may wait for a worker group; beyond it "
                 "RESOURCE_EXHAUSTED")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 20));
  app.add_option("--drain-timeout", drain_timeout_s,
                 "seconds that running requests get after SIGTERM")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 86400.0));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    EndWith(app, error);
  }
  // required() would be checked before flags that CLI11 does not know.
  if (flags.model_dir.empty()) EndWithMistake("--model DIR is missing");
  flags.drain_timeout =
      std::chrono::milliseconds(static_cast<int64_t>(drain_timeout_s * 1000));
  return flags;
}

}  // namespace ring
