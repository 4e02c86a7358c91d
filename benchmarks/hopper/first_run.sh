#!/usr/bin/env bash
# The first look at an H100 or H200, at most five minutes: benchmarks/hopper/first_run.sh [STEP ...]
#   occupancy   how many CTAs are resident at once, by the size of their clusters
#   latencies   what an exchange between multiprocessors costs
#   tests       the tests that wait for a card
#   ladder      the kernels in several tilings: right, and how fast
#   train       a char-RNN by the commands of the README
#   table       errors and times beside cuDNN, PyTorch and flax (benchmarks/hopper.sh)
# Every step has a time limit of its own, so that one that hangs costs only itself, and writes to $OUT
# (build/hopper without it) as it goes. In a copy without its git repository, JAXRNN_COMMIT says which
# commit this is.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$root" || exit
python=${PYTHON:-python3}
out=$(realpath -m "${OUT:-build/hopper}")
seconds=${LADDER_SECONDS:-100}
mkdir -p "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-1}
export XLA_PYTHON_CLIENT_PREALLOCATE=false # or one process would leave no memory for the others
begin=$SECONDS
say() { echo "== $((SECONDS - begin)) s: $*"; }
stop() {
  echo "error: $*" >&2
  exit 1
}

command -v nvidia-smi >/dev/null || stop "there is no NVIDIA driver on this machine (nvidia-smi)"
card=$(nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,temperature.gpu --format=csv,noheader) ||
  stop "nvidia-smi finds no card"
say "$card"
toolkit=$("$python" -m jaxrnn.recurrence.kernels.hopper.toolkit) || stop "the kernels cannot be compiled here"
export CUDA_ROOT=$toolkit
say "CUDA toolkit in $CUDA_ROOT"

step() { # NAME SECONDS COMMAND ...: its output is shown and kept
  local name=$1 limit=$2
  shift 2
  say "$name, at most $limit s"
  timeout -k 10 "$limit" "$@" 2>&1 | tee "$out/$name.txt"
  [ "${PIPESTATUS[0]}" -eq 0 ] || say "$name ended with exit status ${PIPESTATUS[0]}"
}
latencies() {
  "$CUDA_ROOT/bin/nvcc" -O3 -std=c++17 -gencode=arch=compute_90a,code=sm_90a \
    "$here/latencies.cu" -o "$scratch/latencies" && "$scratch/latencies"
}
train() {
  "$python" -m jaxrnn.train --accelerator gpu --workdir "$scratch/run" &&
    "$python" -m jaxrnn.generate "$scratch/run" --prime "ROMEO:" --length 200
  cp "$scratch/run/metrics.jsonl" "$out/"
}
export -f latencies train
export python here out scratch

for name in "${@:-occupancy latencies tests ladder train table}"; do
  for name in $name; do
    case $name in
      occupancy) step occupancy 30 "$python" "$here/occupancy.py" ;;
      latencies) step latencies 60 bash -c latencies ;;
      tests)
        step tests 120 "$python" -m pytest -n 0 -m "" -k "card or on_a_gpu" tests/test_cudnn.py tests/test_hopper.py
        ;;
      ladder)
        step ladder $((seconds + 20)) "$python" "$here/ladder.py" --seconds "$seconds" --output "$out/ladder.jsonl"
        ;;
      train) step train 90 bash -c train ;;
      table)
        step table 200 bash "$root/benchmarks/hopper.sh" "$out" --seconds 180 --repeats 3 \
          --cells lstm gru-after --stages right table latency
        ;;
      *) stop "there is no step $name" ;;
    esac
  done
done
say "done; the results are in $out"
