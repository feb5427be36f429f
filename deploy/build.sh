#!/usr/bin/env bash
# Configures and builds a preset with as many jobs as memory allows.
#
#   build.sh PRESET [-D...] [-- TARGET...]
#
# RING_WERROR=ON in the environment makes warnings errors.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=$1
shift
defines=(${RING_WERROR:+-DRING_WERROR=$RING_WERROR})
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  defines+=("$1")
  shift
done
[ $# -eq 0 ] || shift

# A translation unit with gRPC takes about 0.5 GB, with sanitizers 1.2 GB.
per_job_mb=800
case $preset in *san) per_job_mb=1500 ;; esac
free_mb=$(awk '/MemAvailable/ {print int($2 / 1024)}' /proc/meminfo)
jobs=$((free_mb / per_job_mb))
cores=$(nproc)
[ "$jobs" -le "$cores" ] || jobs=$cores
[ "$jobs" -ge 1 ] || jobs=1

# Ninja itself notices every other change of the configuration.
if [ ${#defines[@]} -gt 0 ] ||
   [ ! "build/$preset/build.ninja" -nt CMakePresets.json ]; then
  mkdir -p build
  log=build/$preset-configure.log
  cmake --preset "$preset" "${defines[@]}" >"$log" 2>&1 || {
    cat "$log" >&2
    exit 1
  }
  rm -f "$log"
fi
exec ninja -C "build/$preset" -j "$jobs" "$@"
