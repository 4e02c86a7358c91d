#!/usr/bin/env bash
# The first run on an H100 or H200, at most 285 s: benchmarks/hopper_first_run.sh, from anywhere.
# Every step has a time limit of its own and writes to $OUT (build/hopper by default) as it goes.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
out=$(realpath -m "${OUT:-$root/build/hopper}")
mkdir -p "$out"
begin=$SECONDS
say() { echo "== $((SECONDS - begin)) s: $*"; }
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=1

for folder in "${CUDA_ROOT:-}" /usr/local/cuda /usr/local/cuda-13* /opt/cuda; do
  if [ -x "$folder/bin/ptxas" ] && [ -f "$folder/nvvm/libdevice/libdevice.10.bc" ]; then
    export CUDA_ROOT=$folder
    break
  fi
done
say "CUDA_ROOT ${CUDA_ROOT:-is missing: JAX would die of a segmentation fault while it compiles}"
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,temperature.gpu --format=csv,noheader
pip list 2>/dev/null | grep -iE '^(jax|flax|optax|orbax|numpy|torch|nvidia-cu|tyro)' | tr -s ' ' | tr '\n' ';'; echo

say "clusters that are resident at once"
timeout 20 python3 "$here/hopper_occupancy.py" 2>&1 | tee "$out/occupancy.json"

say "what an exchange costs"
{ "${CUDA_ROOT:-/usr/local/cuda}/bin/nvcc" -O3 -std=c++17 -gencode=arch=compute_90a,code=sm_90a \
  "$here/hopper_latencies.cu" -o /tmp/latencies && timeout 30 /tmp/latencies; } 2>&1 | tee "$out/latencies.txt"

say "the ladder of cuts"
timeout -k 5 110 python3 "$here/hopper_ladder.py" 2>&1 | tee "$out/ladder.txt"

say "a char-RNN, by the commands"
timeout -k 5 60 python3 -m jaxrnn.train --accelerator gpu --steps 1000 --workdir /tmp/run 2>&1 | tee "$out/train.txt"
cp /tmp/run/metrics.jsonl "$out/" 2>/dev/null
timeout -k 5 40 python3 -m jaxrnn.generate /tmp/run --prime "ROMEO:" --length 200 2>&1 | tee -a "$out/train.txt"

left=$((275 - SECONDS + begin))
say "right, then times, in $left s"
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_triton_gemm=false" # cuBLAS, as the peers have, and no tuning
timeout -k 10 "$left" bash "$here/hopper.sh" "$out" --seconds $((left - 20)) \
  --repeats 3 --cells lstm gru-after --stages table right latency 2>&1 | tee "$out/log.txt"
say "done"
