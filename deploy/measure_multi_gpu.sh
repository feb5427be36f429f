#!/usr/bin/env bash
# Checks and measures a worker group on the GPUs of this host, and prints one
# table. Needs a build of the cuda preset, or its programs in one folder.
#
#   measure_multi_gpu.sh [OPTION VALUE]...
#
#   --bin      folder with mpi_golden_test, nccl_communicator_test, nccl_bench and
#              ring-worker; without it they are taken from build/cuda
#   --ranks    sizes of the group, "2 4 8" as far as there are GPUs. More ranks
#              than GPUs share them: that checks, it does not measure
#   --model    folder with the config of a model that is measured with made-up
#              weights, and in which a rank is killed; without it neither is done
#   --small    folder with the config of a model that fits on one GPU, measured
#              with fp8 weights by one rank and by every number of ranks
#   --weights  formats of the model: "fp8 as-stored"
#   --experts  how its experts lie: "owned sliced"
#   --batches, --prompts, --limits   ring-worker's --bench-batches and
#              --bench-prompts, and the options that bound its memory
#   --part-seconds, --seconds   what one part and the whole may take; parts that
#              find less than 20 s left are not run
#   --logs     where the programs' full output goes
set -uo pipefail

bin='' ranks='' model='' small='' logs=$(mktemp -d)
weights='fp8 as-stored' experts='owned sliced'
batches=1,8,32,128,256 prompts=4096,32768
limits='--max-sequences 256 --kv-tokens 1100000 --max-batch-tokens 8192'
part_seconds=300 seconds=36000
while [ $# -gt 0 ]; do
  case $1 in
    --bin) bin=$(realpath "$2") ;;
    --ranks) ranks=$2 ;;
    --model) model=$(realpath "$2") ;;
    --small) small=$(realpath "$2") ;;
    --weights) weights=$2 ;;
    --experts) experts=$2 ;;
    --batches) batches=$2 ;;
    --prompts) prompts=$2 ;;
    --limits) limits=$2 ;;
    --part-seconds) part_seconds=$2 ;;
    --seconds) seconds=$2 ;;
    --logs) mkdir -p "$2"; logs=$(realpath "$2") ;;
    *) echo "measure_multi_gpu.sh: unknown option $1" >&2; exit 2 ;;
  esac
  shift 2
done
cd "$(dirname "$0")/.." || exit

gpus=$(nvidia-smi --query-gpu=name --format=csv,noheader | wc -l)
[ "$gpus" -ge 1 ] || { echo "no GPU on this host" >&2; exit 1; }
if [ -z "$ranks" ]; then
  for n in 2 4 8; do [ "$n" -gt "$gpus" ] || ranks+="$n "; done
  [ -n "$ranks" ] || ranks=2
fi

# Open MPI refuses root and more ranks than cores unless told otherwise, and
# must stay on this host.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_btl=self,vader OMPI_MCA_oob_tcp_if_include=lo
export RING_TEST_DEVICE=cuda RING_TEST_GPUS=$gpus

program() {
  local found
  for found in "$bin/$1" build/cuda/{bin,tests,bench}/"$1"; do
    [ -x "$found" ] && { echo "$found"; return; }
  done
  echo "$1: not built" >&2
  return 1
}

failures=0
report=$logs/report
: >"$report"
row() { echo "| $1 | $2 | $3 |" >>"$report"; }
fail() { failures=$((failures + 1)); row "$1" "$2" "FAILED: $3"; }

# Seconds that the next part may take, 0 if it should not begin.
time_left() {
  local left=$((seconds - SECONDS))
  [ "$left" -ge 20 ] || left=0
  echo $((left < part_seconds ? left : part_seconds))
}

# measure NAME RANKS PROGRAM [ARG...]: runs it and adds a row.
measure() {
  local name=$1 n=$2 start=$SECONDS path left status=0
  path=$(program "$3") || { fail "$name" "$n" "not built"; return; }
  left=$(time_left)
  [ "$left" -gt 0 ] || { fail "$name" "$n" "not run: no time left"; return; }
  shift 3
  timeout -k 5 "$left" mpirun -np "$n" "$path" "$@" >"$logs/$name.$n" 2>&1 ||
    status=$?
  if [ "$status" -eq 0 ]; then
    row "$name" "$n" "$((SECONDS - start)) s"
  elif [ "$status" -eq 124 ]; then
    fail "$name" "$n" "stopped after $left s"
  elif grep -q 'out of memory\|RESOURCE_EXHAUSTED' "$logs/$name.$n"; then
    row "$name" "$n" "does not fit: $(grep -m 1 -o \
      'reason=.*\|.*out of memory.*' "$logs/$name.$n")"
  else
    fail "$name" "$n" "status $status, $(grep -v '^-' "$logs/$name.$n" | tail -n 1)"
  fi
}

# The options of a group of $1 ranks that measures itself on model $2.
bench_options() {
  local device='--device cuda'
  [ "$1" -le "$gpus" ] || device='--device cuda:0 --share-gpu'
  echo "--bench $device --model $2 --load dummy --tp $1 $limits"
}

# A rank that dies in mid-step ends the group: within 15 s all ranks are gone,
# and one line names the culprit.
kill_test() {
  local n=$1 log=$logs/kill.$1 path launcher victim start ms incident
  path=$(program ring-worker) || { fail "kill a rank" "$n" "not built"; return; }
  [ "$(time_left)" -gt 0 ] || { fail "kill a rank" "$n" "no time left"; return; }
  # The launcher would end the others itself.
  # shellcheck disable=SC2046
  mpirun --enable-recovery -np "$n" "$path" $(bench_options "$n" "$model") \
    --weights fp8 --bench-batches "$(seq -s , 500 | sed 's/[0-9]\+/1/g')" \
    >"$log" 2>&1 &
  launcher=$!
  for _ in $(seq 300); do
    grep -qs '^decode' "$log" && break
    sleep 0.2
  done
  sleep 2 # the ranks have told each other which step they are in
  victim=$(pgrep -P "$launcher" | tail -n 1)
  start=$(date +%s%N)
  kill -KILL "$victim"
  ms=0
  while [ -n "$(pgrep -P "$launcher")" ] && [ "$ms" -lt 30000 ]; do
    sleep 0.05
    ms=$((($(date +%s%N) - start) / 1000000))
  done
  kill -KILL "$launcher" 2>/dev/null
  wait "$launcher" 2>/dev/null
  incident=$(grep -m 1 -o 'incident rank=.*' "$log")
  if [ "$ms" -le 15000 ] && [ -n "$incident" ]; then
    row "kill a rank" "$n" "gone after $ms ms: $incident"
  else
    fail "kill a rank" "$n" "gone after $ms ms: $incident"
  fi
}

for n in $ranks; do
  measure collectives "$n" nccl_communicator_test
  measure nccl_bench "$n" nccl_bench
  if [ -n "$model" ]; then
    for format in $weights; do
      for layout in $experts; do
        # shellcheck disable=SC2046
        measure "bench_${format}_$layout" "$n" ring-worker \
          $(bench_options "$n" "$model") --weights "$format" \
          --experts "$layout" --bench-batches "$batches" \
          --bench-prompts "$prompts"
      done
    done
    kill_test "$n"
  fi
  measure goldens "$n" mpi_golden_test
done
if [ -n "$small" ]; then
  for n in 1 $ranks; do
    # shellcheck disable=SC2046
    measure bench_small "$n" ring-worker $(bench_options "$n" "$small") \
      --weights fp8 --bench-batches "$batches" --bench-prompts "$prompts"
  done
fi

nvidia-smi --query-gpu=index,name,clocks.max.sm,clocks.max.mem --format=csv,noheader
nvidia-smi topo -m 2>/dev/null | sed -n "1,$((gpus + 1))p"
for log in "$logs"/nccl_bench.* "$logs"/bench_*; do
  [ -e "$log" ] && { echo; echo "== ${log##*/}"; grep -vE '^[0-9]{4}-' "$log"; }
done
echo
echo "| what | ranks | result |"
echo "|---|---|---|"
cat "$report"
echo "full output: $logs"
[ "$failures" -eq 0 ]
