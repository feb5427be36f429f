"""A client generated from proto/, as any user of the API makes one."""

import atexit
import shutil
import subprocess
import sys
import tempfile

import grpc

from cluster import PATIENCE_S, ROOT


def generate_modules(proto_folder):
    """Runs protoc; returns the modules ring.v1.inference_pb2 and _pb2_grpc."""
    folder = tempfile.mkdtemp(prefix="ring-proto.")
    atexit.register(shutil.rmtree, folder)
    plugin = shutil.which("grpc_python_plugin")
    subprocess.run(
        ["protoc", "-I", proto_folder, "--python_out", folder,
         "--plugin=protoc-gen-grpc_python=" + plugin,
         "--grpc_python_out", folder, "ring/v1/inference.proto"], check=True)
    sys.path.insert(0, folder)
    # They do not exist before.
    # pylint: disable=import-outside-toplevel
    from ring.v1 import inference_pb2, inference_pb2_grpc
    return inference_pb2, inference_pb2_grpc


pb, rpc = generate_modules(ROOT + "/proto")


def ids_request(ids, max_tokens=None, **fields):
    """A greedy request for token ids."""
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=ids),
        stopping=pb.Stopping(max_tokens=max_tokens), **fields)


def endless_request(max_tokens=4000, **fields):
    """2,101 tokens: sampling this hot with this seed draws no end before."""
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=[5]),
        sampling=pb.Sampling(temperature=100, seed=51),
        stopping=pb.Stopping(max_tokens=max_tokens), **fields)


def generate(channel, message, timeout=PATIENCE_S):
    """The call: an iterator over events."""
    return rpc.InferenceStub(channel).Generate(message, timeout=timeout)


def wait_for_delta(call):
    """Reads events until tokens come; returns the first delta."""
    return next(e.delta for e in call if e.HasField("delta"))


def error_of(call):
    """Reads to the end; the error that ends it."""
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call ended well")
