#!/usr/bin/env bash
# Installs what is missing, builds and runs every test that needs no GPU.
#
#   tests/run.sh [PRESET] [CTEST OPTION...]     PRESET: cpu (default), cpu-asan,
#                                               cpu-tsan, kernels-only
set -euo pipefail
cd "$(dirname "$0")/.."

preset=cpu
case ${1:-} in
  cpu*|kernels-only) preset=$1; shift ;;
esac
./deploy/packages.sh install build test
# The tests may be off in a tree that the demo has made.
./deploy/build.sh "$preset" -DRING_TESTS=ON

# Open MPI refuses root and more ranks than cores unless told otherwise, and
# must stay on this machine's loopback.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_oob_tcp_if_include=lo
export UBSAN_OPTIONS=print_stacktrace=1
ctest --preset "$preset" -j "$(nproc)" "$@"
