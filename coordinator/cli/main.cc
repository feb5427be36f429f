// ring: the command line client.
#include <csignal>

#include "coordinator/cli/commands.h"
#include "coordinator/cli/flags.h"

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  const ring::CommandLine line = ring::ParseCommandLine(argc, argv);
  switch (line.command) {
    case ring::CommandLine::Command::kGenerate:
      return ring::RunGenerate(line.generate);
    case ring::CommandLine::Command::kChat:
      return ring::RunChat(line.chat);
    case ring::CommandLine::Command::kBench:
      return ring::RunBench(line.bench);
    case ring::CommandLine::Command::kStatus:
      return ring::RunStatus(line.status);
  }
  return 2;
}
