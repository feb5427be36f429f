#!/usr/bin/env python3
"""Fails on an include, a macro or a try block outside the place it belongs to.

Dependencies point one way:

  coordinator -> proto <- worker -> parallel -> kernels -> kernels/base
  coordinator -> worker/model_files
  worker/text_check -> coordinator/text
  worker/model -> worker/cache, worker/model_files

and inside worker/:

  main -> coordinator_link, scheduler         the leader: what to do
  main -> step_loop -> scheduler, engine      doing it
  engine -> plan_buffer, sampler, worker/model, worker/cache
  main -> rank -> rank_plan -> engine         how a rank starts
  main -> watchdog -> incident, failure_judge   how it ends
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

# What ends a failed rank has to work whatever the model does.
FAILURE = [
    "worker/watchdog", "worker/incident", "worker/failure_judge",
    "parallel/progress.h", "parallel/side_link.h", "kernels/base/",
]

# What the files of a folder, or those of one name, may include from this
# project, by prefix. The longest prefix that matches a file's path decides.
ALLOWED = {
    "kernels/base/": ["kernels/base/"],
    "kernels/": ["kernels/"],
    "parallel/": ["parallel/", "kernels/"],
    "proto/": ["proto/", "ring/v1/", "kernels/base/"],
    "worker/model_files/": ["worker/model_files/", "kernels/base/"],
    "worker/cache/": [
        "worker/cache/", "worker/model_files/", "worker/generation_request.h",
        "parallel/", "kernels/",
    ],
    "worker/model/": [
        "worker/model/", "worker/cache/", "worker/model_files/", "parallel/",
        "kernels/",
    ],
    # The link sees requests and events, nothing of the engine.
    "worker/coordinator_link": [
        "worker/coordinator_link", "worker/generation_request.h",
        "worker/request_sink.h", "worker/model_files/", "proto/", "ring/v1/",
        "kernels/base/",
    ],
    # What the coordinator would say of a model's text.
    "worker/text_check": [
        "worker/text_check", "worker/model_files/", "coordinator/text/",
        "kernels/base/",
    ],
    # The leader's decisions: of a device only the size of a KV page and what
    # an adjustment consists of, and nothing of MPI.
    "worker/scheduler": [
        "worker/scheduler", "worker/adjustment_plan.h",
        "worker/cache/cache_allocator.h", "worker/cache/sequence_state.h",
        "worker/decode_bucket.h", "worker/plan_rows.h",
        "worker/request_sink.h", "kernels/paged_attention/paged_attention.h",
        "ring/v1/", "kernels/base/",
    ],
    "worker/adjustment_plan": [
        "worker/adjustment_plan", "worker/cache/sequence_state.h",
        "worker/generation_request.h", "kernels/sampling/logit_adjustment.h",
        "ring/v1/", "kernels/base/",
    ],
    "worker/cache/cache_allocator": [
        "worker/cache/cache_allocator", "kernels/base/",
    ],
    "worker/request_sink": ["worker/generation_request.h", "kernels/base/"],
    "worker/plan_rows": ["ring/v1/", "kernels/base/"],
    # Executing a plan: not who decides, nor how ranks find each other.
    "worker/step_loop": [
        "worker/step_loop", "worker/scheduler.h", "worker/engine.h",
        "parallel/control_channel.h", "parallel/progress.h",
        "parallel/side_link.h", "ring/v1/", "kernels/base/",
    ],
    "worker/engine": [
        "worker/engine", "worker/decode_bucket.h", "worker/plan_buffer.h",
        "worker/plan_rows.h", "worker/sampler.h", "worker/model/",
        "worker/model_files/", "worker/cache/", "parallel/", "kernels/",
        "ring/v1/",
    ],
    "worker/plan_buffer": [
        "worker/plan_buffer", "worker/plan_rows.h",
        "worker/model/step_inputs.h", "kernels/", "ring/v1/",
    ],
    "worker/sampler": [
        "worker/sampler", "parallel/communicator.h", "kernels/",
    ],
    # Starting a rank, from what a user asked for to an engine.
    "worker/shard_of_mesh": [
        "worker/shard_of_mesh", "worker/model/load_plan.h",
        "worker/model_files/", "parallel/", "kernels/base/",
    ],
    "worker/start_check": [
        "worker/start_check", "worker/engine_bytes.h", "worker/flags.h",
        "parallel/", "kernels/base/",
    ],
    "worker/rank": [  # and rank_plan
        "worker/rank", "worker/engine", "worker/flags.h",
        "worker/shard_of_mesh.h", "worker/model/", "worker/model_files/",
        "parallel/", "kernels/",
    ],
    "worker/bench_main": [
        "worker/bench_main", "worker/rank.h", "worker/engine.h",
        "worker/flags.h", "worker/decode_bucket.h", "parallel/progress.h", "kernels/",
        "ring/v1/",
    ],
    "worker/watchdog": FAILURE,
    "worker/incident": FAILURE,
    "worker/failure_judge": FAILURE,
    # Only main puts everything together; other files have a line above.
    "worker/main": ["worker/", "parallel/", "kernels/"],
    "worker/flags": ["worker/flags.h", "kernels/base/"],
    "worker/": ["kernels/base/"],
    "coordinator/text/": [
        "coordinator/text/", "worker/model_files/", "kernels/base/",
    ],
    "coordinator/": [
        "coordinator/", "proto/", "ring/v1/", "worker/model_files/",
        "kernels/base/",
    ],
}

# Headers of libraries, and the files that may include them.
CONFINED = [
    (r"^grpc(pp|\+\+)?/|^proto/(status|credentials)\.h$|\.grpc\.pb\.h$",
     r"^(coordinator/(?!text/)|proto/(status|credentials)"
     r"|worker/coordinator_link)"),
    (r"^mpi\.h$", r"^parallel/[^/]*\.cc$"),
    (r"^nccl\.h$", r"^parallel/nccl_communicator\.cc$"),
    (r"^(cuda|cublas|cub/|cooperative_groups)",
     r"\.cuh?$|^kernels/cuda_backend\.cc$|^parallel/nccl_communicator\.cc$"),
    (r"^(oneapi|dnnl)", r"^kernels/linear/dnnl_gemm\.cc$"),
    (r"^CLI/", r"^(worker|coordinator|coordinator/cli)/flags\.cc$"),
    (r"\.pb\.h$", r"^(proto|coordinator/(?!text/)|worker/(?!model|cache))"),
]

# Files that wrap a library which throws.
MAY_CATCH = {
    "worker/model_files/json.cc",
    "coordinator/text/jinja/value_json.cc",
    "worker/flags.cc",
    "coordinator/flags.cc",
    "coordinator/cli/flags.cc",
    "kernels/linear/dnnl_gemm.cc",
}

# The only files that know which devices were compiled in.
MAY_ASK_FOR_DEVICES = {
    "kernels/backend_factory.cc",
    "parallel/communicator_factory.cc",
}

FOLDERS = ["kernels", "parallel", "proto", "worker", "coordinator"]
INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]')


def check(path, text):
    rule = max((p for p in ALLOWED if path.startswith(p)), key=len)
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{path}:{number}"
        match = INCLUDE.match(line)
        if match:
            quoted, target = match.group(1) == '"', match.group(2)
            if target.startswith("../"):
                yield f"{where}: {target}: include by path from the root"
            ours = target.split("/")[0] in FOLDERS + ["ring", "tests"]
            if quoted and ours and not any(
                    target.startswith(p) for p in ALLOWED[rule]):
                yield f"{where}: {rule} may not include {target}"
            for header, place in CONFINED:
                if re.search(header, target) and not re.search(place, path):
                    yield f"{where}: {target} does not belong here"
        if re.search(r"\b(try\s*\{|catch\s*\()", line) and path not in MAY_CATCH:
            yield f"{where}: try or catch outside the files that wrap a library"
        if re.match(r"\s*#\s*if.*RING_WITH_", line) and (
                path not in MAY_ASK_FOR_DEVICES):
            yield f"{where}: only the factories ask for RING_WITH_..."
        if re.search(r"\busing namespace\b", line):
            yield f"{where}: using namespace"


def main():
    problems = []
    count = 0
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix not in (".h", ".cc", ".cu", ".cuh"):
                continue
            count += 1
            path = file.relative_to(ROOT).as_posix()
            problems += check(path, file.read_text())
    for problem in problems:
        print(problem)
    print(f"{count} files, {len(problems)} problems")
    return 1 if problems or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
