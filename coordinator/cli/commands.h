// The commands of `ring`, one file each. Each returns the exit code.
#pragma once

#include "coordinator/cli/flags.h"

namespace ring {

int RunGenerate(const GenerateFlags& flags);  // 0: the request finished
int RunChat(const ChatFlags& flags);          // that of the last turn
int RunBench(const BenchFlags& flags);        // 0: all requests finished
int RunStatus(const StatusFlags& flags);      // 0: a worker group serves

}  // namespace ring
