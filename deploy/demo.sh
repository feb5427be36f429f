#!/usr/bin/env bash
# Builds Ringmaster and lets the bundled ring-tiny answer a question: one
# coordinator and four CPU ranks (tp 2 x dp 2) on this machine.
#
#   deploy/demo.sh [--keep] ["question"]
#
# --keep leaves the cluster serving until this script is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."

keep=no
question=""
while [ $# -gt 0 ]; do
  case $1 in
    --keep) keep=yes ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "demo.sh: unknown option $1; see --help" >&2; exit 2 ;;
    *)
      if [ -n "$question" ]; then
        echo "demo.sh: one question, in quotes: \"$question $1 ...\"" >&2
        exit 2
      fi
      question=$1
      ;;
  esac
  shift
done
question=${question:-What is 5345 + 42134?}

run_dir=$(mktemp -d "${TMPDIR:-/tmp}/ring-demo.XXXXXX")
# Ends every in_group, the last one first: the ranks before the coordinator.
# The programs leave in good order on SIGTERM; mpirun passes it on.
stop() {
  trap - EXIT
  trap '' INT TERM HUP
  local group
  for group in $(jobs -p | tac); do
    kill -TERM -- "-$group" 2>/dev/null || continue
    wait "$group" 2>/dev/null || true
    # What the leader has started may end a moment later than it.
    for _ in $(seq 100); do
      kill -0 -- "-$group" 2>/dev/null || break
      sleep 0.05
    done
  done
  rm -rf "$run_dir"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# in_group COMMAND...: starts it as `$!`, leading a process group of its own, so
# that an interrupt reaches this script first and the command through stop().
in_group() {
  set -m
  "$@" &
  set +m
}

./deploy/packages.sh install build
bin=build/cpu/bin
programs="ring-coordinator ring-worker ring"
# The words are arguments.
# shellcheck disable=SC2086
if [ -f build/cpu/CMakeCache.txt ]; then
  in_group ./deploy/build.sh cpu -- --quiet $programs
else
  echo "Building; this takes a few minutes the first time."
  # The tests need more packages.
  in_group ./deploy/build.sh cpu -DRING_TESTS=OFF -- $programs
fi
wait $!

fail() {
  echo "demo.sh: $1" >&2
  tail -n 5 "$run_dir"/*.log >&2
  exit 1
}

in_group $bin/ring-coordinator --model tests/data/ring-tiny \
  --listen 127.0.0.1:0 --port-file "$run_dir/address" \
  2>"$run_dir/coordinator.log"
coordinator_pid=$!
for _ in $(seq 100); do
  [ -s "$run_dir/address" ] && break
  kill -0 "$coordinator_pid" 2>/dev/null || fail "the coordinator ended"
  sleep 0.05
done
server=$(cat "$run_dir/address")

# Open MPI asks before it runs as root or with more ranks than cores, and
# would talk over another interface than loopback. Open MPI 5, which has no such
# choice and fails where one asks for it, does not read the last variable.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_btl=self,vader OMPI_MCA_oob_tcp_if_include=lo
in_group mpirun --oversubscribe -np 4 \
  $bin/ring-worker --coordinator "$server" --model tests/data/ring-tiny \
  --tp 2 --dp 2 2>"$run_dir/workers.log" </dev/null
workers_pid=$!
for _ in $(seq 300); do
  $bin/ring status --server "$server" >/dev/null 2>&1 && break
  kill -0 "$workers_pid" 2>/dev/null || fail "the ranks ended"
  sleep 0.1
done
$bin/ring status --server "$server" || fail "no rank is serving after 30 s"

printf '\n> %s\n' "$question"
$bin/ring generate --server "$server" --prompt "$question" --stats ||
  fail "the question was not answered"

cat <<EOF

ring-tiny (8 million parameters) also answers:
  "Sort 52, 7, 31, 9 from small to large."
  "Alice has a red ball. Bob has a blue cup. What does Bob have?"
  "Who are you?"
Go on:
  deploy/demo.sh --keep                  leave the cluster serving, then
  $bin/ring chat --server HOST:PORT      talk to it
  README.md                              load a real Ring checkpoint
EOF

if [ $keep = yes ]; then
  printf '\nServing at %s. Stop it with Ctrl-C, or:\n  kill %s\n' \
    "$server" $$
  wait "$workers_pid" || fail "the ranks ended"
fi
