#!/bin/sh
# Compiles every portable source for 64-bit Arm (nothing is linked or run), to
# catch what only x86-64 accepts. Needs g++-aarch64-linux-gnu and protoc; the
# headers of abseil, protobuf, gRPC, nlohmann-json, PCRE2, CLI11 and oneDNN
# serve any processor and are taken from the host.
#
#   tests/cross_aarch64.sh [folder ...]     default: every folder of sources
set -eu
cd "$(dirname "$0")/.."
compiler=${CROSS_CXX:-aarch64-linux-gnu-g++}
if ! command -v "$compiler" >/dev/null; then
  echo "$compiler not found: ./deploy/packages.sh install cross" >&2
  exit 2
fi
[ $# -gt 0 ] || set -- kernels parallel proto worker coordinator

generated=$(mktemp -d)
trap 'rm -rf "$generated"' EXIT
protoc -I proto --plugin="protoc-gen-grpc=$(command -v grpc_cpp_plugin)" \
  --cpp_out "$generated" --grpc_out "$generated" proto/ring/v1/*.proto

# Left out: code for x86 and NVIDIA instructions, and what includes the two
# packages whose headers are made for one processor.
sources=$(grep -rLE 'include ["<](mpi\.h|nccl\.h|openssl/|[a-z_/]*\.cuh)' \
  --include='*.cc' "$@" | grep -vE '_(avx|amx)[a-z0-9_]*\.cc$' | sort)

export compiler generated
# The inner shell expands what is quoted.
# shellcheck disable=SC2016
echo "$sources" | xargs -P "$(nproc)" -I {} sh -c '
  "$compiler" -std=c++20 -O0 -Wno-psabi -DRING_VERSION=\"0\" -I. -isystem "$generated" \
    -idirafter /usr/include -c "{}" -o /dev/null || { echo "FAILED: {}"; exit 1; }'
echo "$(echo "$sources" | wc -l) sources compile for aarch64"
