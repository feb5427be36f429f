"""An unmodified Python client against real programs.

The client's code is generated from proto/ when the test runs. The coordinator
and the `ring` client are those of the build; the worker group is echo_group,
which answers a prompt with the prompt.

  python_client_test.py BIN_DIR TESTS_DIR PROTO_DIR MODEL_DIR
"""

import atexit
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import unittest

import grpc

BIN, TESTS, PROTO, MODEL = sys.argv[1:5]
PATIENCE_S = 20


def generate_client(folder):
    """Runs protoc with gRPC's Python plugin on what clients need."""
    subprocess.run(
        ["protoc", "-I", PROTO, "--python_out", folder,
         "--plugin=protoc-gen-grpc_python=" + find("grpc_python_plugin"),
         "--grpc_python_out", folder, "ring/v1/inference.proto"],
        check=True)
    sys.path.insert(0, folder)
    # pylint: disable=import-outside-toplevel
    from ring.v1 import inference_pb2, inference_pb2_grpc
    return inference_pb2, inference_pb2_grpc


def find(program):
    for folder in os.environ["PATH"].split(":"):
        path = os.path.join(folder, program)
        if os.path.exists(path):
            return path
    raise FileNotFoundError(program)


def run(program, *options, **others):
    """The program's end."""
    return subprocess.run([os.path.join(BIN, program), *options],
                          capture_output=True, text=True, timeout=PATIENCE_S,
                          check=False, **others)


class Program:
    """A child process that never outlives the test."""

    def __init__(self, *command):
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE)
        self.lines = []
        self.changed = threading.Condition()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        atexit.register(self.stop, signal.SIGKILL)

    def _read(self):
        for line in self.process.stderr:
            with self.changed:
                self.lines.append(line.decode())
                self.changed.notify_all()

    def wait_for_line(self, text):
        def seen():
            return [line for line in self.lines if text in line]
        with self.changed:
            if not self.changed.wait_for(seen, PATIENCE_S):
                raise TimeoutError(f"no line with {text!r}: {self.lines}")
            return seen()[0]

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self.reader.join()
        self.process.stderr.close()
        atexit.unregister(self.stop)
        return code


class Coordinator(Program):
    def __init__(self, *options, listen="127.0.0.1:0", model=MODEL):
        super().__init__(os.path.join(BIN, "ring-coordinator"), "--model",
                         model, "--listen", listen, *options)
        line = self.wait_for_line("listening")
        self.address = line.split("address=")[1].split()[0]


class EchoGroup(Program):
    def __init__(self, address, model=MODEL):
        super().__init__(os.path.join(TESTS, "echo_group"), address, model)
        self.wait_for_line("joined the coordinator")


class HealthWatch:
    """grpc.health.v1.Health/Watch over raw bytes: it needs no stubs."""

    STATUS = {b"": "UNKNOWN", b"\x08\x01": "SERVING",
              b"\x08\x02": "NOT_SERVING", b"\x08\x03": "SERVICE_UNKNOWN"}

    def __init__(self, channel, service):
        name = service.encode()
        request = b"\x0a" + bytes([len(name)]) + name if name else b""
        self.call = channel.unary_stream("/grpc.health.v1.Health/Watch")(
            request, timeout=PATIENCE_S)

    def next(self):
        return self.STATUS[next(self.call)]


class PythonClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.pb, cls.rpc = generate_client(cls.folder.name)
        cls.coordinator = Coordinator()
        cls.group = EchoGroup(cls.coordinator.address)
        cls.channel = grpc.insecure_channel(cls.coordinator.address)
        cls.inference = cls.rpc.InferenceStub(cls.channel)
        cls.control = cls.rpc.ControlStub(cls.channel)

    @classmethod
    def tearDownClass(cls):
        cls.channel.close()
        cls.group.stop()
        cls.coordinator.stop()
        cls.folder.cleanup()

    def generate(self, **fields):
        call = self.inference.Generate(self.pb.GenerateRequest(**fields),
                                       timeout=PATIENCE_S)
        events = list(call)
        return (events[0].accepted, [e.delta for e in events[1:-1]],
                events[-1].finished)

    def ring(self, *command, **options):
        return subprocess.run(
            [os.path.join(BIN, "ring"), command[0], "--server",
             self.coordinator.address, *command[1:]],
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
            **options)

    def test_streams_text_and_tokens(self):
        text = "Grüße, 世界 😀!"
        accepted, deltas, finished = self.generate(text=text)
        self.assertEqual("".join(d.text for d in deltas), text)
        ids = [i for d in deltas for i in d.token_ids]
        self.assertEqual(len(ids), accepted.prompt_tokens + 1)
        self.assertEqual(finished.reason, self.pb.FINISH_REASON_EOS)
        self.assertEqual(finished.usage.completion_tokens, len(ids))
        tokenized = self.inference.Tokenize(self.pb.TokenizeRequest(text=text))
        self.assertEqual(ids[:-1], list(tokenized.token_ids))

    def test_chat_and_options(self):
        chat = self.pb.Chat(
            messages=[self.pb.ChatMessage(role="user", content="Hi there")])
        _, deltas, finished = self.generate(
            chat=chat, sampling=self.pb.Sampling(temperature=0.5, seed=3),
            stopping=self.pb.Stopping(stop_strings=["the"]))
        self.assertEqual(finished.reason, self.pb.FINISH_REASON_STOP_STRING)
        self.assertTrue("".join(d.text for d in deltas).endswith("Hi "))

    def test_refuses_by_name(self):
        with self.assertRaises(grpc.RpcError) as raised:
            self.generate(text="x", sampling=self.pb.Sampling(temperature=-1))
        self.assertEqual(raised.exception.code(),
                         grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("temperature = -1 is not in [0, 100]",
                      raised.exception.details())

    def test_deadline_and_cancel_free_the_group(self):
        held = self.pb.GenerateRequest(
            token_ids=self.pb.TokenIds(ids=[0, 1]))
        with self.assertRaises(grpc.RpcError) as raised:
            list(self.inference.Generate(held, timeout=0.2))
        self.assertEqual(raised.exception.code(),
                         grpc.StatusCode.DEADLINE_EXCEEDED)
        call = self.inference.Generate(held)
        self.assertTrue(next(call).HasField("accepted"))
        call.cancel()
        while self.control.GetLoad(
                self.pb.GetLoadRequest()).groups[0].assigned_requests:
            pass

    def test_abort(self):
        held = self.pb.GenerateRequest(
            request_id="held", token_ids=self.pb.TokenIds(ids=[0]))
        call = self.inference.Generate(held)
        next(call)
        self.control.Abort(self.pb.AbortRequest(request_id="held"))
        with self.assertRaises(grpc.RpcError) as raised:
            next(call)
        self.assertEqual(raised.exception.code(), grpc.StatusCode.CANCELLED)

    def test_reflection_lists_the_services(self):
        reflect = self.channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        answer = next(reflect(iter([b"\x3a\x01*"]), timeout=PATIENCE_S))
        for name in (b"ring.v1.Inference", b"ring.v1.Control",
                     b"grpc.health.v1.Health"):
            self.assertIn(name, answer)

    def test_health_follows_the_groups(self):
        coordinator = Coordinator()
        try:
            channel = grpc.insecure_channel(coordinator.address)
            watches = [HealthWatch(channel, name) for name in
                       ("", "ring.v1.Inference", "ring.v1.Control")]
            for watch in watches:
                self.assertEqual(watch.next(), "NOT_SERVING")
            group = EchoGroup(coordinator.address)
            for watch in watches:
                self.assertEqual(watch.next(), "SERVING")
            group.stop(signal.SIGKILL)
            for watch in watches:
                self.assertEqual(watch.next(), "NOT_SERVING")
            channel.close()
        finally:
            self.assertEqual(coordinator.stop(), 0)

    def test_sigterm_drains(self):
        coordinator = Coordinator("--drain-timeout", "0.2")
        group = EchoGroup(coordinator.address)
        with grpc.insecure_channel(coordinator.address) as channel:
            call = self.rpc.InferenceStub(channel).Generate(
                self.pb.GenerateRequest(token_ids=self.pb.TokenIds(ids=[0])))
            next(call)
            self.assertEqual(coordinator.stop(), 0)
            with self.assertRaises(grpc.RpcError) as raised:
                next(call)
            self.assertEqual(raised.exception.code(),
                             grpc.StatusCode.UNAVAILABLE)
        group.stop()

    def test_control_drain_ends_the_coordinator(self):
        coordinator = Coordinator()
        with grpc.insecure_channel(coordinator.address) as channel:
            self.rpc.ControlStub(channel).Drain(self.pb.DrainRequest())
        self.assertEqual(coordinator.process.wait(PATIENCE_S), 0)
        coordinator.stop()

    def make_certificate(self):
        """(key, certificate) of 127.0.0.1, signed by itself."""
        key, cert = (os.path.join(self.folder.name, name)
                     for name in ("key", "cert"))
        if not os.path.exists(cert):
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes",
                 "-subj", "/CN=localhost", "-addext",
                 "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
                check=True, capture_output=True)
        return key, cert

    def test_tls_and_mutual_tls(self):
        key, cert = self.make_certificate()
        server = ["--tls-cert", cert, "--tls-key", key]
        trust = ["--tls-ca", cert]
        own = ["--tls-cert", cert, "--tls-key", key]
        welcome = "no worker group"
        wants_tls = "does the server use TLS? Then --tls-ca"
        handshake = "does the server use TLS, with a certificate"
        for options, client, text in (
                (server, trust, welcome), (server, [], wants_tls),
                ([], trust, handshake), (server + trust, trust, "try: "),
                (server + trust, trust + own, welcome)):
            with self.subTest(options=options, client=client):
                coordinator = Coordinator(*options)
                result = run("ring", "status", "--server", coordinator.address,
                             "--timeout", "5", *client)
                coordinator.stop()
                self.assertIn(text, result.stdout + result.stderr)
                self.assertEqual(welcome in result.stdout, text == welcome)

    def test_port_file(self):
        path = os.path.join(self.folder.name, "port")
        coordinator = Coordinator("--port-file", path)
        with open(path, encoding="utf-8") as file:
            written = file.read().strip()
        coordinator.stop()
        self.assertEqual(written, coordinator.address)

    def test_config_file(self):
        path = os.path.join(self.folder.name, "config.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write("drain-timeout = 1\nmax-queued = 7\n")
        coordinator = Coordinator("--config", path, "--max-queued", "8")
        with grpc.insecure_channel(coordinator.address) as channel:
            load = self.rpc.ControlStub(channel).GetLoad(
                self.pb.GetLoadRequest())
        coordinator.stop()
        self.assertEqual(load.max_queued, 8)  # the command line wins

    def test_config_file_with_a_misspelt_key(self):
        path = os.path.join(self.folder.name, "misspelt.toml")
        for program, options, text, key in (
                ("ring-coordinator", ["--model", MODEL], "max-queed = 7\n",
                 "max-queed"),
                ("ring-worker", ["--model", MODEL, "--check"], "kv-tokns = 5\n",
                 "kv-tokns"),
                ("ring", ["status"], "timeout = 7\n", "timeout"),
                ("ring", ["generate", "--raw", "x"],
                 "[generate]\nmax-tokns = 5\n", "max-tokns")):
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            with self.subTest(program=program, key=key):
                self.assert_mistake(run(program, "--config", path, *options),
                                    f"{program}: --config: ", key)
                self.assert_mistake(run(program, "--config", "/nope", *options),
                                    f"{program}: --config: ", "/nope")

    def test_ring_generate(self):
        plain = self.ring("generate", "--raw", "Grüße 世界")
        self.assertEqual((plain.returncode, plain.stdout), (0, "Grüße 世界\n"))
        result = self.ring("generate", "--ids", "5,6,7", "--max-tokens", "2",
                           "--logprobs", "--seed", "11", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        answer = json.loads(result.stdout)
        self.assertEqual(answer["token_ids"], [5, 6])
        self.assertEqual(answer["finish_reason"], "LENGTH")
        self.assertEqual(answer["usage"]["prompt_tokens"], 3)
        self.assertEqual(answer["logprobs"], [-0.25, -0.25])
        self.assertEqual(answer["seed"], 11)
        for key in ("text", "reasoning", "timings"):
            self.assertIn(key, answer)
        stats = self.ring("generate", "--ids", "5,6,7", "--stats")
        self.assertIn("3 prompt tokens, 4 tokens, first after", stats.stderr)

    def hold(self, stub, count):
        """Streams that the group never answers, all accepted."""
        held = self.pb.GenerateRequest(
            token_ids=self.pb.TokenIds(ids=[0]),
            stopping=self.pb.Stopping(max_tokens=8))
        calls = [stub.Generate(held, timeout=PATIENCE_S) for _ in range(count)]
        for call in calls:
            self.assertTrue(next(call).HasField("accepted"))
        return calls

    def test_ring_says_when_a_full_server_has_room(self):
        coordinator = Coordinator("--max-queued", "1")
        group = EchoGroup(coordinator.address)
        with grpc.insecure_channel(coordinator.address) as channel:
            calls = self.hold(self.rpc.InferenceStub(channel), 17)
            full = run("ring", "generate", "--server", coordinator.address,
                       "--raw", "x")
            for call in calls:
                call.cancel()
        self.assertEqual(full.returncode, 1)
        self.assertIn("RESOURCE_EXHAUSTED: the queue is full: --max-queued "
                      "lets 1 requests wait", full.stderr)
        self.assertRegex(full.stderr,
                         r"try: the server is busy: again in [0-9.]+ s\n")
        group.stop()
        coordinator.stop()

    def test_idle_streams_take_little_memory(self):
        def resident_mb():
            with open(f"/proc/{coordinator.process.pid}/status",
                      encoding="ascii") as file:
                return next(int(line.split()[1]) / 1024 for line in file
                            if line.startswith("VmRSS:"))
        coordinator = Coordinator()
        group = EchoGroup(coordinator.address)
        channels = [
            grpc.insecure_channel(
                coordinator.address,
                options=[("grpc.use_local_subchannel_pool", 1)])
            for _ in range(10)]
        before = resident_mb()
        calls = []
        for channel in channels:
            calls += self.hold(self.rpc.InferenceStub(channel), 100)
        grown = resident_mb() - before
        for call in calls:
            call.cancel()
        for channel in channels:
            channel.close()
        group.stop()
        coordinator.stop()
        print(f"1,000 idle streams take {grown:.1f} MB")
        self.assertLess(grown, 100)

    def test_ring_generate_several_choices(self):
        result = self.ring("generate", "--ids", "5,6", "--n", "3",
                           "--top-logprobs", "2", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        answer = json.loads(result.stdout)
        self.assertEqual(len(answer["choices"]), 3)
        for choice in [answer] + answer["choices"]:
            self.assertEqual(choice["token_ids"][:2], [5, 6])
            self.assertEqual(choice["finish_reason"], "EOS")
            self.assertEqual(choice["top_logprobs"][0],
                             [{"id": 5, "logprob": -0.25}] * 2)
        for flag, value, message in (
                ("--n", "17", "choices = 17 is not in [1, 16]"),
                ("--top-logprobs", "21", "top_logprobs = 21 is not in [0, 20]")):
            refused = self.ring("generate", "--ids", "5", "--json", flag, value)
            self.assertEqual(refused.returncode, 1)
            self.assertIn(message, refused.stderr)

    def test_ring_generate_says_what_failed(self):
        result = self.ring("generate", "--raw", "x", "--top-p", "2")
        self.assertEqual(result.returncode, 1)
        self.assertIn("top_p = 2 is not in (0, 1]", result.stderr)
        self.assertIn(self.coordinator.address, result.stderr)
        self.assertIn("try:", result.stderr)
        late = self.ring("generate", "--ids", "0", "--timeout", "0.2")
        self.assertEqual(late.returncode, 1)
        self.assertIn("DEADLINE_EXCEEDED", late.stderr)

    def assert_mistake(self, result, *texts):
        """One message about the command line, exit code 2."""
        self.assertEqual(result.returncode, 2, result)
        self.assertEqual(result.stdout, "")
        for text in texts:
            self.assertIn(text, result.stderr)
        self.assertNotIn("try:", result.stderr)

    def test_ring_says_what_is_wrong_with_the_command_line(self):
        config = os.path.join(MODEL, "config.json")
        for command, texts in (
                ([], ["no command is given", "generate, chat, bench or status"]),
                (["foo"], ['"foo" is no command', "generate, chat, bench or status"]),
                (["generate", "--prompt", ""], ["--prompt is empty"]),
                (["generate", "--raw", ""], ["--raw is empty"]),
                (["generate", "--ids", ""], ["--ids"]),
                (["generate"], ["standard input is empty"]),
                (["generate", "--file", "/nope"],
                 ["--file: cannot open /nope: No such file"]),
                (["generate", "--file", "/tmp"],
                 ["--file: cannot read /tmp: Is a directory"]),
                (["generate", "--raw", "x", "--seed", "-1"],
                 ["ring: --seed: -1 is no number in [0, 2^64)\n"]),
                (["generate", "--foo"], ["ring: ", "--foo"]),
                (["generate", "--raw", "x", "--logprobs"],
                 ["--logprobs requires --json"]),
                (["generate", "--raw", "x", "--n", "2"],
                 ["--n requires --json"]),
                (["status", "--server", "localhost"],
                 ["--server", '"localhost" is not HOST:PORT: it has no port']),
                (["status", "--server", "localhost:99999"],
                 ["--server", '"99999" is no number in [1, 65535]']),
                (["status", "--server", "::1:700"], ["needs brackets"]),
                (["status", "--server", "@/nope"],
                 ["--server: cannot open /nope: No such file"]),
                (["status", "--server", "@" + config], ["--server: ", config]),
                (["status", "--tls-cert", config],
                 ["--tls-cert and --tls-key need --tls-ca"]),
                (["status", "--tls-ca", config, "--tls-cert", config],
                 ["--tls-cert and --tls-key go together"]),
                (["bench", "--rate", "1", "--concurrency", "1"],
                 ["--concurrency excludes --rate"]),
                (["bench", "--rate", "1,0"], ["--rate", "0"]),
                (["bench", "--prompt-tokens", "9:5"],
                 ['--prompt-tokens 9:5: "5" is no number in [9, ']),
                (["bench", "--requests", "5", "--warmup", "5"],
                 ["--warmup 5 leaves none of 5 requests"]),
                (["bench", "--trace", "/nope"],
                 ["--trace: cannot open /nope: No such file"]),
                (["bench", "--trace", config],
                 [f"--trace {config}: line 1: "]),
                (["bench", "--json", "/nope/file"],
                 ["--json: cannot write /nope/file"]),
                (["chat", "--tls-ca", "/nope"],
                 ["--tls-ca: cannot open /nope: No such file"]),
                (["generate", "--raw", "x", "--tls-ca", config],
                 ["--tls-ca: ", "is no PEM file"])):
            with self.subTest(command=command):
                self.assert_mistake(
                    run("ring", *command, stdin=subprocess.DEVNULL), *texts)

    def test_coordinator_says_what_is_wrong_with_the_command_line(self):
        taken = self.coordinator.address
        for options, texts in (
                (["--listen", "127.0.0.1:99999"],
                 ["--listen", '"99999" is no number in [0, 65535]']),
                (["--listen", taken],
                 [f"cannot listen on {taken}: another program listens there",
                  "give another port"]),
                (["--listen", "192.0.2.1:7000", "--insecure"],
                 ["cannot listen on 192.0.2.1:7000", "no such address"]),
                (["--listen", "0.0.0.0:0"],
                 ["--listen 0.0.0.0:0 is not a loopback address",
                  "--insecure"]),
                (["--tls-key", "/nope"],
                 ["--tls-cert and --tls-key go together"]),
                (["--tls-cert", "/nope", "--tls-key", "/nope"],
                 ["--tls-cert: cannot open /nope"])):
            with self.subTest(options=options):
                self.assert_mistake(
                    run("ring-coordinator", "--model", MODEL, *options),
                    "ring-coordinator: ", *texts)
        for options, text in (([], "--model DIR is missing"),
                              (["--foo"], "--foo"),
                              (["--model", "/nope"], "--model: ")):
            self.assert_mistake(run("ring-coordinator", *options),
                                "ring-coordinator: ", text)

    def test_server_is_read_from_a_file(self):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(self.coordinator.address + "\n")
            file.flush()
            result = run("ring", "status", "--server", "@" + file.name)
        self.assertIn(self.coordinator.address, result.stdout)

    def test_listens_on_ipv6(self):
        try:
            with socket.socket(socket.AF_INET6) as probe:
                probe.bind(("::1", 0))
        except OSError:
            self.skipTest("this host has no IPv6")
        coordinator = Coordinator(listen="[::1]:0")
        self.assertRegex(coordinator.address, r"^\[::1\]:[1-9][0-9]*$")
        result = run("ring", "status", "--server", coordinator.address)
        coordinator.stop()
        self.assertIn("no worker group", result.stdout)

    def test_worker_says_what_is_wrong_with_the_command_line(self):
        for options, text in (
                ([], "--model DIR is missing"), (["--foo"], "--foo"),
                (["--model", MODEL, "--check", "--device", "foo"],
                 '--device: "foo" is no device: use cpu, cuda or cuda:N'),
                (["--model", MODEL, "--check", "--device", "cuda:-1"],
                 '"cuda:-1" is no device'),
                (["--model", MODEL, "--check", "--bench"],
                 "--check excludes --bench")):
            self.assert_mistake(run("ring-worker", *options), "ring-worker: ",
                                text)

    def test_programs_have_a_version(self):
        versions = {run(program, "--version").stdout
                    for program in ("ring", "ring-coordinator", "ring-worker")}
        self.assertEqual(len(versions), 1, versions)
        self.assertRegex(versions.pop(), r"^ringmaster \d+\.\d+\.\d+\n$")

    def test_message_of_more_than_64_mb_is_no_busy_server(self):
        path = os.path.join(self.folder.name, "large")
        with open(path, "wb") as file:
            file.write(b"a" * (64 << 20))
        result = self.ring("generate", "--file", path)
        self.assertEqual(result.returncode, 1)
        self.assertIn("RESOURCE_EXHAUSTED", result.stderr)
        self.assertIn("a message may have 64 MB at most", result.stderr)
        with open(path, "ab") as file:
            file.write(b"a")
        self.assert_mistake(self.ring("generate", "--file", path),
                            "is larger than 67108864 bytes")
        os.remove(path)

    def test_requests_that_cannot_be_parsed(self):
        for method, message in (
                ("Inference/Generate", "ring.v1.GenerateRequest"),
                ("Inference/Tokenize", "ring.v1.TokenizeRequest"),
                ("Inference/GetModel", "ring.v1.GetModelRequest"),
                ("Control/Abort", "ring.v1.AbortRequest")):
            call = self.channel.unary_stream("/ring.v1." + method)(
                b"\xff\xff\xff", timeout=PATIENCE_S)
            with self.subTest(method=method):
                with self.assertRaises(grpc.RpcError) as raised:
                    next(call)
                self.assertEqual(raised.exception.code(),
                                 grpc.StatusCode.INVALID_ARGUMENT)
                self.assertEqual(raised.exception.details(),
                                 f"the request cannot be parsed as a {message}")
        for path in ("/ring.v1.Inference/Nothing", "/other.Service/Generate"):
            with self.assertRaises(grpc.RpcError) as raised:
                next(self.channel.unary_stream(path)(b"", timeout=PATIENCE_S))
            self.assertEqual(raised.exception.code(),
                             grpc.StatusCode.UNIMPLEMENTED)

    def test_ring_generate_takes_penalties_and_biases(self):
        good = ["generate", "--ids", "5,6,7", "--repetition-penalty", "1.2",
                "--presence-penalty", "-0.5", "--frequency-penalty", "2",
                "--logit-bias", "5=-1.5", "--logit-bias", "812=100",
                "--min-tokens", "1"]
        result = self.ring(*good)
        self.assertEqual(result.returncode, 0, result.stderr)
        for flag, value, message in (
                ("--repetition-penalty", "0",
                 "repetition_penalty = 0 is not in (0, 10]"),
                ("--presence-penalty", "3",
                 "presence_penalty = 3 is not in [-2, 2]"),
                ("--frequency-penalty", "-3",
                 "frequency_penalty = -3 is not in [-2, 2]"),
                ("--logit-bias", "6=101",
                 "logit_bias of id 6 = 101 is not in [-100, 100]"),
                ("--logit-bias", "813=1",
                 "logit_bias: id 813 is not in [0, 812]"),
                ("--min-tokens", "-1",
                 "min_tokens = -1 is not in [0, 1073741824]")):
            result = self.ring("generate", "--ids", "5", flag, value)
            self.assertEqual(result.returncode, 1, flag)
            self.assertIn(message, result.stderr)
        for bad in ("5", "a=1", "5=x"):
            result = self.ring("generate", "--ids", "5", "--logit-bias", bad)
            self.assertEqual(result.returncode, 2, bad)
            self.assertIn("--logit-bias", result.stderr)
        ignored = self.ring("generate", "--ids", "5", "--ignore-eos",
                            "--max-tokens", "1")
        self.assertEqual(ignored.returncode, 0, ignored.stderr)

    def test_ring_chat(self):
        result = self.ring("chat", input="Hello\n")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("Hello", result.stdout)

    def make_thinking_model(self):
        """A model whose prompts, and so their echoes, begin with thinking."""
        folder = os.path.join(self.folder.name, "thinking")
        shutil.copytree(MODEL, folder)
        path = os.path.join(folder, "tokenizer_config.json")
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        config["chat_template"] = (
            "<think>\nhow nice\n</think>\n{{ messages[-1].content }}")
        os.chmod(path, 0o644)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)
        return folder

    def test_ring_chat_dims_thinking_on_a_terminal(self):
        model = self.make_thinking_model()
        coordinator = Coordinator(model=model)
        group = EchoGroup(coordinator.address, model)
        main, terminal = pty.openpty()
        command = [os.path.join(BIN, "ring"), "chat", "--server",
                   coordinator.address]
        shown = subprocess.run(command, input=b"Hello\n", stdout=terminal,
                               timeout=PATIENCE_S, check=False)
        os.close(terminal)
        text = b""
        try:
            while piece := os.read(main, 4096):
                text += piece
        except OSError:  # the terminal has no other end
            pass
        os.close(main)
        piped = subprocess.run(command, input=b"Hello\n",
                               stdout=subprocess.PIPE, timeout=PATIENCE_S,
                               check=False)
        group.stop()
        coordinator.stop()
        self.assertEqual((shown.returncode, piped.returncode), (0, 0))
        self.assertIn(b"\x1b[2mhow nice\x1b[0m\r\nHello\r\n", text)
        self.assertEqual(text.count(b"\x1b"), 2)
        self.assertEqual(piped.stdout, b"how nice\nHello\n")

    def test_ring_status(self):
        result = self.ring("status", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        status = json.loads(result.stdout)
        self.assertTrue(status["serving"])
        self.assertEqual(len(status["groups"]), 1)
        with open("/dev/full", "wb") as full:
            lost = subprocess.run(
                [os.path.join(BIN, "ring"), "status", "--server",
                 self.coordinator.address, "--timeout", "0"], stdout=full,
                stderr=subprocess.PIPE, text=True, check=False)
        self.assertEqual(lost.returncode, 1)
        self.assertIn("takes no more", lost.stderr)
        coordinator = Coordinator()
        lonely = subprocess.run(
            [os.path.join(BIN, "ring"), "status", "--server",
             coordinator.address], capture_output=True, text=True, check=False)
        coordinator.stop()
        self.assertEqual(lonely.returncode, 1)
        self.assertIn("no worker group", lonely.stdout)

    def test_ring_status_watch_is_lines_where_there_is_no_terminal(self):
        with subprocess.Popen(
                [os.path.join(BIN, "ring"), "status", "--watch", "--server",
                 self.coordinator.address], stdout=subprocess.PIPE,
                text=True) as watch:
            lines = [watch.stdout.readline()]
            self.generate(text="so many tokens")
            lines += [watch.stdout.readline() for _ in range(2)]
            watch.send_signal(signal.SIGINT)
            rest = watch.stdout.read()
        self.assertEqual((watch.returncode, rest), (0, ""))
        shape = (r"^groups 1, running 0, queued 0, finished \d+, failed \d+, "
                 r"tokens/s (\d+)\n$")
        for line in lines:
            self.assertRegex(line, shape)
        rates = [int(re.match(shape, line)[1]) for line in lines]
        self.assertEqual(rates[0], 0)
        self.assertGreater(max(rates), 0)

    def test_ring_status_watch_draws_in_place(self):
        columns = 50
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ,
                    struct.pack("HHHH", 10, columns, 0, 0))
        before = termios.tcgetattr(follower)
        with subprocess.Popen(
                [os.path.join(BIN, "ring"), "status", "--watch", "--server",
                 self.coordinator.address], stdout=follower) as watch:
            seen = ""
            while seen.count("tokens/s\r\n") < 3:
                seen += os.read(leader, 4096).decode()
            watch.send_signal(signal.SIGINT)
            self.assertEqual(watch.wait(PATIENCE_S), 0)
        self.assertEqual(termios.tcgetattr(follower), before)
        os.close(follower)
        os.close(leader)
        # Each drawing goes up as many lines as the one before had: the model,
        # its context, the requests, one group, the rate.
        drawings = seen.split("\r\033[5A\033[J")
        self.assertEqual(len(drawings), 3)
        self.assertTrue(drawings[0].startswith("\r\033[J"))
        for drawing in drawings:
            lines = drawing.removeprefix("\r\033[J").split("\r\n")
            self.assertEqual(len(lines), 6)
            self.assertEqual(lines[-1], "")
            self.assertIn("ring-tiny at", lines[0])
            self.assertIn("group 1: ", lines[3])
            self.assertIn("tokens/s", lines[4])
            self.assertEqual(max(map(len, lines)), columns)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
