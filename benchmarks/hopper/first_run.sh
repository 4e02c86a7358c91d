#!/usr/bin/env bash
# First measurements on an H100 or H200, at most 280 seconds: benchmarks/hopper/first_run.sh [STEP ...]
# These steps are run by default:
#   cudnn       errors of cuDNN, and times next to "xla" and PyTorch, on any NVIDIA GPU
#   tests       the tests that need a GPU
#   ladder      errors and times of the kernels in several tilings
#   table       errors and times beside cuDNN, PyTorch and flax (benchmarks/hopper/run.sh)
# and these by name:
#   latencies   time of an exchange between multiprocessors, a minute
#   train       a char-RNN, by the commands of the README, 90 seconds
# Every step has its own time limit, so that a step that hangs costs only itself. Output goes to $OUT
# (default: build/hopper) as it comes. In a copy without the git repository, set JAXRNN_COMMIT to the
# commit.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$root" || exit
python=${PYTHON:-python3}
out=$(realpath -m "${OUT:-build/hopper}")
seconds=${LADDER_SECONDS:-50}
mkdir -p "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-1}
# Otherwise one process leaves no memory for the others.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
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
need_toolkit() {
  [ -z "${found:-}" ] || return 0
  found=$("$python" -m jaxrnn.recurrence.kernels.hopper.toolkit) || stop "the kernels cannot be compiled here"
  export CUDA_ROOT=$found
  say "CUDA toolkit in $CUDA_ROOT"
}

# step NAME SECONDS COMMAND ...: run a command with a time limit; show and keep its output
step() {
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

for name in "${@:-cudnn tests ladder table}"; do
  for name in $name; do
    [ "$name" = cudnn ] || need_toolkit
    case $name in
      cudnn) step cudnn 60 "$python" -m benchmarks.hopper.cudnn --seconds 40 --folder "$out" ;;
      latencies) step latencies 60 bash -c latencies ;;
      tests)
        # By default, the tests run on the CPU and compile without optimizations.
        step tests 70 env JAX_PLATFORMS=cuda,cpu JAX_DISABLE_MOST_OPTIMIZATIONS=0 "$python" -m pytest -n 4 -m "" -k "card or on_a_gpu or OnAGPU" tests/recurrence/kernels/test_cudnn.py tests/recurrence/kernels/test_hopper.py
        ;;
      ladder)
        step ladder $((seconds + 15)) "$python" -m benchmarks.hopper.ladder --seconds "$seconds" --output "$out/ladder.jsonl"
        ;;
      train) step train 90 bash -c train ;;
      table)
        step table 85 bash "$here/run.sh" "$out" --seconds 70 --repeats 3 \
          --cells lstm gru-after --stages right table latency
        ;;
      *) stop "there is no step $name" ;;
    esac
  done
done
say "done; the results are in $out"
