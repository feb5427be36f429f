"""Programs that come and go in good order, and requests that are given up."""

import os
import signal
import subprocess
import tempfile
import unittest

import grpc

from cluster import PATIENCE_S, Cluster, eventually
from proto_client import (endless_request, error_of, generate,
                          ids_request, pb, rpc, wait_for_delta)

FREED_S = 5  # at once on a quiet machine


class LifecycleTest(unittest.TestCase):
    def start(self, *coordinator_options):
        cluster = self.enterContext(Cluster())
        cluster.start_coordinator(*coordinator_options)
        return cluster

    def assert_answers(self, cluster):
        answer = cluster.generate("--prompt", "What is 5345 + 42134?")
        self.assertEqual(answer["text"], str(5345 + 42134))

    def assert_freed(self, cluster):
        eventually(cluster.nothing_is_held, FREED_S, "nothing is held")

    def test_group_joins_when_all_its_ranks_are_ready(self):
        cluster = self.start()
        group = cluster.start_group(ranks=4, tp=2)
        group.wait_joined()
        # The coordinator's line has the sums over dp = 2 groups, as status.
        line = cluster.coordinator.wait_for_lines("group joined")[0]
        status = cluster.status()["groups"][0]
        self.assertEqual((status["max_sequences"], status["kv_tokens"]),
                         (2 * 8, 2 * 32768))
        self.assertIn(f" max_sequences={2 * 8} kv_tokens={2 * 32768} "
                      f"max_batch_tokens={2 * 256} ", line)
        order = [("joined" if "joined the coord" in line else "ready")
                 for line in group.lines
                 if "joined the coord" in line or "rank ready" in line]
        self.assertEqual(order, ["ready"] * 4 + ["joined"])

    def test_group_rejoins_a_restarted_coordinator(self):
        cluster = self.start()
        address = cluster.address
        group = cluster.start_group(ranks=2)
        cluster.wait_serving()
        for number in (signal.SIGTERM, signal.SIGKILL):
            call = generate(cluster.channel, endless_request())
            wait_for_delta(call)
            if number == signal.SIGTERM:
                call.cancel()  # else the coordinator waits for it
            cluster.coordinator.stop(number)
            cluster.start_coordinator(address=address)
            cluster.wait_serving()
            self.assert_freed(cluster)  # also of the lost client's request
            self.assert_answers(cluster)
        self.assertEqual(len(group.wait_for_lines("joined the coord", 3)), 3)
        self.assertEqual(group.incidents(), [])

    def test_two_groups_share_requests(self):
        cluster = self.start()
        first, second = (cluster.start_group(ranks=1, tp=1) for _ in range(2))
        first.wait_joined()
        second.wait_joined()
        calls = [generate(cluster.channel, endless_request())
                 for _ in range(4)]
        for call in calls:
            wait_for_delta(call)
        groups = cluster.status()["groups"]
        self.assertEqual([g["assigned_requests"] for g in groups], [2, 2])
        for call in calls:
            call.cancel()
        self.assert_freed(cluster)
        # What one group leaves behind the other goes on with.
        first.stop()
        eventually(lambda: len(cluster.status()["groups"]) == 1)
        self.assert_answers(cluster)

    def test_given_up_requests_free_what_they_hold(self):
        cluster = self.start()
        cluster.start_group(ranks=2)
        cluster.wait_serving()
        with self.subTest("cancel"):
            call = generate(cluster.channel, endless_request())
            wait_for_delta(call)
            self.assertFalse(cluster.nothing_is_held())
            call.cancel()
            self.assert_freed(cluster)
        with self.subTest("deadline"):
            call = generate(cluster.channel, endless_request(), timeout=0.3)
            self.assertEqual(error_of(call).code(),
                             grpc.StatusCode.DEADLINE_EXCEEDED)
            self.assert_freed(cluster)
        with self.subTest("abort"):
            call = generate(cluster.channel, endless_request(request_id="a"))
            wait_for_delta(call)
            rpc.ControlStub(cluster.channel).Abort(
                pb.AbortRequest(request_id="a"))
            self.assertEqual(error_of(call).code(), grpc.StatusCode.CANCELLED)
            self.assert_freed(cluster)
        with self.subTest("client is killed"):
            client = cluster.start_ring(
                "generate", "--ids", "5", "--temperature", "100", "--seed",
                "51", "--max-tokens", "4000")
            eventually(lambda: any(g["running"]
                                   for g in cluster.status()["groups"]))
            client.kill()
            client.communicate()
            self.assert_freed(cluster)
        with self.subTest("prefill is cut short"):
            call = generate(cluster.channel,
                            ids_request([7] * 12000, max_tokens=1))
            eventually(lambda: any(g["running"]
                                   for g in cluster.status()["groups"]))
            call.cancel()
            self.assert_freed(cluster)
        self.assert_answers(cluster)

    def test_request_ids_are_unique_while_they_live(self):
        cluster = self.start()
        cluster.start_group(ranks=1, tp=1)
        cluster.wait_serving()
        call = generate(cluster.channel, endless_request(request_id="mine"))
        wait_for_delta(call)
        again = generate(cluster.channel, endless_request(request_id="mine"))
        self.assertEqual(error_of(again).code(),
                         grpc.StatusCode.ALREADY_EXISTS)
        call.cancel()
        self.assert_freed(cluster)
        answer = cluster.generate("--ids", "5", "--max-tokens", "1",
                                  "--request-id", "mine")
        self.assertEqual(answer["request_id"], "mine")

    def test_coordinator_drains_on_sigterm(self):
        cluster = self.start()
        cluster.start_group(ranks=1, tp=1)
        cluster.wait_serving()
        health = cluster.health()
        health.wait_for("SERVING")
        call = generate(cluster.channel, endless_request(max_tokens=400))
        wait_for_delta(call)
        cluster.coordinator.process.send_signal(signal.SIGTERM)
        health.wait_for("NOT_SERVING")
        late = generate(cluster.channel, ids_request([5], max_tokens=1))
        self.assertEqual(error_of(late).code(), grpc.StatusCode.UNAVAILABLE)
        events = list(call)  # what runs comes to its end
        self.assertEqual(events[-1].finished.reason, pb.FINISH_REASON_LENGTH)
        self.assertEqual(events[-1].finished.usage.completion_tokens, 400)
        self.assertEqual(cluster.coordinator.wait(), 0)

    def test_coordinator_gives_up_at_its_drain_timeout(self):
        cluster = self.start("--drain-timeout", "0.2")
        cluster.start_group(ranks=1, tp=1)
        cluster.wait_serving()
        call = generate(cluster.channel, endless_request())
        wait_for_delta(call)
        self.assertEqual(cluster.coordinator.stop(), 0)
        self.assertEqual(error_of(call).code(), grpc.StatusCode.UNAVAILABLE)

    def test_a_second_sigterm_cuts_the_drain_short(self):
        cluster = self.start("--drain-timeout", "3600")
        cluster.start_group(ranks=1, tp=1)
        cluster.wait_serving()
        health = cluster.health()
        health.wait_for("SERVING")
        call = generate(cluster.channel, endless_request())
        wait_for_delta(call)
        cluster.coordinator.process.send_signal(signal.SIGTERM)
        health.wait_for("NOT_SERVING")
        wait_for_delta(call)  # it goes on
        self.assertEqual(cluster.coordinator.stop(), 0)
        error = error_of(call)
        self.assertEqual(error.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertIn("told to stop at once", error.details())

    def test_group_leaves_in_good_order_on_sigterm(self):
        cluster = self.start()
        group = cluster.start_group(ranks=4)
        cluster.wait_serving()
        call = generate(cluster.channel, endless_request())
        wait_for_delta(call)
        group.stop()
        self.assertIn(error_of(call).code(), (grpc.StatusCode.UNAVAILABLE,
                                              grpc.StatusCode.CANCELLED))
        cluster.health().wait_for("NOT_SERVING")
        self.assertEqual(group.rank_pids(), {})
        self.assertEqual(group.incidents(), [])
        # Killed ranks would leave theirs.
        self.assertEqual(os.listdir(cluster.folders.shared_memory), [])

    def test_leader_told_to_stop_ends_the_group_well(self):
        """Without the launcher's kill: every rank returns 0."""
        cluster = self.start()
        group = cluster.start_group(ranks=2)
        cluster.wait_serving()
        leader = cluster.status()["groups"][0]["pid"]
        self.assertEqual(leader, group.rank_pids()[0])
        os.kill(leader, signal.SIGTERM)
        self.assertEqual(group.wait(), 0)
        self.assertEqual(len(group.wait_for_lines("rank ends", 2)), 2)
        self.assertEqual(group.incidents(), [])

    def test_group_and_client_over_tls(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        key, cert = (os.path.join(folder, name) for name in ("key", "cert"))
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes",
             "-subj", "/CN=localhost", "-addext",
             "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
            check=True, capture_output=True)
        tls = ["--tls-ca", cert, "--tls-cert", cert, "--tls-key", key]
        cluster = self.start(*tls)
        cluster.start_group(*tls, ranks=2).wait_joined()
        answer = cluster.generate(*tls, "--prompt", "What is 12 + 30?")
        self.assertEqual(answer["text"], "42")

    def test_a_second_drain_does_not_cut_the_first_short(self):
        cluster = self.start()
        cluster.start_group(ranks=1, tp=1)
        cluster.wait_serving()
        call = generate(cluster.channel, endless_request(max_tokens=400))
        wait_for_delta(call)
        for _ in range(2):
            rpc.ControlStub(cluster.channel).Drain(pb.DrainRequest())
        self.assertEqual(list(call)[-1].finished.usage.completion_tokens, 400)
        self.assertEqual(cluster.coordinator.wait(), 0)

    def start_chat(self):
        """A cluster of one rank, and a chat whose turns do not end."""
        cluster = self.start()
        cluster.start_group(ranks=1, tp=1)
        cluster.wait_serving()
        chat = self.enterContext(subprocess.Popen(
            cluster.ring_command("chat", "--temperature", "100", "--seed",
                                 "51"),
            env=cluster.environment, stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
        return cluster, chat

    def begin_turn(self, cluster, chat):
        chat.stdin.write("Count.\n")
        chat.stdin.flush()
        eventually(lambda: any(g["running"]
                               for g in cluster.status()["groups"]))

    def test_interrupt_cancels_a_turn_and_keeps_the_conversation(self):
        cluster, chat = self.start_chat()
        for turn in (1, 2):
            self.begin_turn(cluster, chat)
            chat.send_signal(signal.SIGINT)
            self.assertIn("CANCELLED", chat.stderr.readline(), turn)
            self.assert_freed(cluster)
        _, errors = chat.communicate("/quit\n", timeout=PATIENCE_S)
        self.assertEqual((chat.returncode, errors), (1, ""))

    def test_sigterm_ends_a_chat_within_a_turn(self):
        cluster, chat = self.start_chat()
        self.begin_turn(cluster, chat)
        chat.send_signal(signal.SIGTERM)
        # Its input stays open: nothing else makes it leave.
        self.assertEqual(chat.wait(PATIENCE_S), 1)
        self.assertIn("CANCELLED", chat.stderr.read())
        self.assert_freed(cluster)

    def test_client_notices_what_cannot_be_read_or_written(self):
        cluster = self.start()
        cluster.start_group(ranks=1, tp=1)
        cluster.wait_serving()
        for options, output, code, message in (
                (["--file", "/tmp"], os.devnull, 2, "cannot read /tmp: Is a directory"),
                (["--prompt", b"a\xffb"], os.devnull, 2,
                 "not UTF-8: byte 1 of 3"),
                (["--ids", "5", "--temperature", "100", "--seed", "51"],
                 "/dev/full", 1, "takes no more"),
                (["--raw", "x", "--max-tokens", "1", "--json"], "/dev/full", 1,
                 "takes no more")):
            with self.subTest(options=options), open(output, "wb") as file:
                result = subprocess.run(
                    cluster.ring_command("generate", *options), stdout=file,
                    stderr=subprocess.PIPE, timeout=PATIENCE_S, check=False)
                self.assertEqual(result.returncode, code)
                self.assertIn(message, result.stderr.decode())
        self.assert_freed(cluster)

    def test_client_without_group_or_server(self):
        cluster = self.start()
        command = cluster.ring_command("generate", "--raw", "x")
        for running in (True, False):
            if not running:
                cluster.coordinator.stop()
            result = subprocess.run(command, capture_output=True, text=True,
                                    timeout=PATIENCE_S, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn(cluster.address, result.stderr)
            self.assertIn("UNAVAILABLE", result.stderr)
            self.assertEqual("no worker group serves" in result.stderr, running)
            self.assertEqual("is ring-coordinator running" in result.stderr,
                             not running)


if __name__ == "__main__":
    unittest.main(verbosity=2)
