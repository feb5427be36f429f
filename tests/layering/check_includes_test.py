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

    def assert_knows(self, path, *headers):
        for header in headers:
            self.assertEqual(list(check(path, f'#include "{header}"')), [],
                             (path, header))

    def assert_knows_nothing_of(self, path, *headers):
        for header in headers:
            self.assertNotEqual(list(check(path, f'#include "{header}"')), [],
                                (path, header))

    def test_the_leader_decides_without_a_device_or_mpi(self):
        self.assert_knows("worker/scheduler.cc", "worker/plan_rows.h",
                          "worker/cache/cache_allocator.h")
        self.assert_knows_nothing_of(
            "worker/scheduler.cc", "worker/engine.h", "worker/step_loop.h",
            "worker/coordinator_link.h", "worker/cache/cache_pool.h",
            "worker/model/step_inputs.h", "kernels/backend.h",
            "parallel/mpi_runtime.h")
        self.assert_knows_nothing_of("worker/cache/cache_allocator.cc",
                                     "kernels/backend.h",
                                     "worker/cache/cache_pool.h")
        self.assert_knows_nothing_of("worker/coordinator_link.cc",
                                     "worker/scheduler.h")

    def test_what_executes_plans_does_not_make_them(self):
        self.assert_knows("worker/step_loop.cc", "worker/scheduler.h",
                          "worker/engine.h")
        self.assert_knows_nothing_of("worker/step_loop.cc", "worker/rank.h",
                                     "worker/model/hybrid_model.h",
                                     "worker/coordinator_link.h")
        for path in ("worker/engine.cc", "worker/sampler.cc",
                     "worker/plan_buffer.cc", "worker/rank.cc",
                     "worker/rank_plan.cc", "worker/bench_main.cc"):
            self.assert_knows_nothing_of(path, "worker/scheduler.h",
                                         "worker/step_loop.h")
        self.assert_knows_nothing_of("worker/sampler.cc", "worker/engine.h")

    def test_what_ends_a_rank_does_not_know_the_model(self):
        for path in ("worker/watchdog.cc", "worker/incident.cc",
                     "worker/failure_judge.cc"):
            self.assert_knows(path, "parallel/side_link.h")
            self.assert_knows_nothing_of(
                path, "worker/engine.h", "worker/model/hybrid_model.h",
                "kernels/backend.h", "parallel/mpi_runtime.h")

    def test_a_new_file_in_worker_needs_a_line(self):
        self.assert_knows("worker/something.cc", "kernels/base/check.h")
        self.assert_knows_nothing_of("worker/something.cc", "worker/engine.h",
                                     "worker/flags.h", "kernels/backend.h")


if __name__ == "__main__":
    unittest.main()
