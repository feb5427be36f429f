#!/bin/bash
# mpi_failure_test.sh MPIEXEC PROGRAM FAULT RANK
# A group of 4 ranks under the MPI launcher loses one: within 15 s the launcher
# has ended with an error, no rank is left, and every incident line names the
# culprit. With RANK -1 nothing fails and the group ends well.
set -u
mpiexec=$1 program=$2 fault=$3 rank=$4
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# A mark in the environment finds processes that should be gone.
mark=$(mktemp -u ring-mark-XXXXXXXX)
start=$(date +%s%N)
timeout -k 1 30 "$mpiexec" --oversubscribe -np 4 \
  env "RING_MARK=$mark" "$program" "$fault" "$rank" >"$log" 2>&1
rc=$?
elapsed=$((($(date +%s%N) - start) / 1000000))
cat "$log"
echo "launcher returned $rc after $elapsed ms"

fail() { echo "FAILED: $*"; exit 1; }
left=$(grep -lz "^RING_MARK=$mark" /proc/[0-9]*/environ 2>/dev/null | tr '\n' ' ')
[ -z "$left" ] || fail "processes are left: $left"
lines=$(grep -c ' incident ' "$log")
if [ "$rank" -lt 0 ]; then
  [ "$rc" -eq 0 ] || fail "a healthy group returned $rc"
  [ "$lines" -eq 0 ] || fail "a healthy group reports incidents"
  exit 0
fi
[ "$rc" -ne 0 ] || fail "the launcher returned 0"
[ "$elapsed" -le 15000 ] || fail "it took $elapsed ms"
[ "$lines" -ge 1 ] || fail "no incident line"
others=$(grep ' incident ' "$log" | grep -vc " incident rank=$rank ")
[ "$others" -eq 0 ] || fail "$others lines name another culprit"
case $fault in
  device) what='planted device error in op ScatterInts' ;;
  trap) what='cuda.* in op ScatterInts' ;;
  *) exit 0 ;;
esac
grep -q "incident.* step=100 rows=1 .*$what" "$log" ||
  fail "the incident names another place"
