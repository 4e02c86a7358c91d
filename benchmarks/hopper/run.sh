#!/usr/bin/env bash
# All measurements on one H100 or H200, in nine minutes: benchmarks/hopper/run.sh [FOLDER] [FLAGS].
# It writes hopper-DEVICE.json to FOLDER, or $OUT, or benchmarks/results. `python -m benchmarks.hopper
# --help` lists the flags. In a copy without the git repository, set JAXRNN_COMMIT to the commit.
set -euo pipefail
folder=${OUT:-}
if [[ $# -gt 0 && $1 != -* ]]; then
  folder=$1
  shift
fi
[[ -z $folder ]] || set -- --folder "$(realpath -m "$folder")" "$@"
root=$(cd "$(dirname "$0")/../.." && pwd)

cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
# Otherwise PyTorch has no memory beside JAX.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-1}
# A child that replaces another one compiles nothing twice.
export JAX_COMPILATION_CACHE_DIR=$cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
# For FlashRNN's kernels.
export TORCH_EXTENSIONS_DIR=$cache/torch
"${PYTHON:-python3}" -m benchmarks.hopper "$@" &
# On SIGTERM it ends its child first.
trap 'kill -TERM $! 2>/dev/null; wait $!' TERM INT
wait $!
