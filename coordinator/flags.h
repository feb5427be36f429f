// The command line of ring-coordinator.
#pragma once

#include <chrono>
#include <string>

#include "coordinator/server.h"

namespace ring {

struct CoordinatorFlags {
  std::string model_dir;
  std::string port_file;  // empty: none
  std::chrono::milliseconds drain_timeout{30000};
  ServerOptions server;
};

// Parses the command line and --config FILE; the command line wins. On --help
// or a mistake it prints and ends the program: 0 or 2.
CoordinatorFlags ParseFlags(int argc, char** argv);

}  // namespace ring
