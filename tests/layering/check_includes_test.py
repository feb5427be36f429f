"""check_includes finds what it is there to find, and nothing in sound files."""
import unittest

from check_includes import check

LINES = {
    "CLI": '#include "CLI/CLI.hpp"',
    "grpc": "#include <grpcpp/grpcpp.h>",
    "credentials": '#include "proto/credentials.h"',
    "mpi": "#include <mpi.h>",
    "worker": '#include "worker/scheduler.h"',
    "up": '#include "../flags.h"',
}


class CheckIncludesTest(unittest.TestCase):
    def assert_allowed_in(self, name, *paths):
        for path in paths:
            self.assertEqual(list(check(path, LINES[name])), [], path)

    def assert_refused_in(self, name, *paths):
        for path in paths:
            self.assertNotEqual(list(check(path, LINES[name])), [], path)

    def test_only_command_lines_use_the_parser(self):
        self.assert_allowed_in("CLI", "worker/flags.cc", "coordinator/flags.cc",
                               "coordinator/cli/flags.cc")
        self.assert_refused_in(
            "CLI", "worker/flags.h", "worker/main.cc", "worker/scheduler.cc",
            "worker/cli/flags.cc", "coordinator/router.cc",
            "coordinator/cli/flags.h", "coordinator/cli/chat.cc",
            "coordinator/text/flags.cc", "kernels/base/flags.cc")

    def test_libraries_stay_where_they_belong(self):
        self.assert_allowed_in("grpc", "coordinator/server.cc",
                               "proto/credentials.cc",
                               "worker/coordinator_link.cc")
        self.assert_refused_in("grpc", "coordinator/text/bpe.cc",
                               "worker/main.cc", "parallel/mesh.cc")
        self.assert_refused_in("credentials", "worker/main.cc",
                               "coordinator/text/bpe.cc")
        self.assert_allowed_in("mpi", "parallel/mpi_runtime.cc")
        self.assert_refused_in("mpi", "parallel/mpi_runtime.h",
                               "worker/main.cc")

    def test_dependencies_point_one_way(self):
        self.assert_allowed_in("worker", "worker/main.cc")
        self.assert_refused_in("worker", "parallel/mesh.cc",
                               "coordinator/router.cc", "worker/model/x.cc")
        self.assert_refused_in("up", "coordinator/cli/chat.cc")


if __name__ == "__main__":
    unittest.main()
