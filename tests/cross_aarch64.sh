#!/bin/sh
# Compiles every portable source for 64-bit Arm (nothing is linked or run), to
# catch what only x86-64 accepts. Needs g++-aarch64-linux-gnu; abseil's and
# nlohmann-json's headers serve any processor and are taken from the host.
#
#   tests/cross_aarch64.sh [folder ...]     default: kernels parallel worker
set -eu
cd "$(dirname "$0")/.."
compiler=${CROSS_CXX:-aarch64-linux-gnu-g++}
if ! command -v "$compiler" >/dev/null; then
  echo "$compiler not found: apt-get install g++-aarch64-linux-gnu" >&2
  exit 2
fi
[ $# -gt 0 ] || set -- kernels parallel worker

# Left out: code for x86 instructions, and the files that need packages whose
# headers are made for one processor (MPI, gRPC and protobuf's output, oneDNN).
sources=$(grep -rLE \
  'include ["<](mpi\.h|nccl\.h|kernels/cuda|grpc|proto/|google/protobuf|oneapi/|ring/v1/)' \
  --include='*.cc' "$@" | grep -vE '_(avx|amx)[a-z0-9_]*\.cc$' | sort)

export compiler
echo "$sources" | xargs -P "$(nproc)" -I {} sh -c '
  "$compiler" -std=c++20 -O1 -I. \
    -idirafter /usr/include -c "{}" -o /dev/null || { echo "FAILED: {}"; exit 1; }'
echo "$(echo "$sources" | wc -l) sources compile for aarch64"
