#!/usr/bin/env bash
# Everything that is measured on one H100 or H200, in nine minutes: benchmarks/hopper.sh [FOLDER] [FLAGS].
# hopper-DEVICE.json goes to FOLDER, or $OUT, or benchmarks/results; the flags are those of hopper.py.
# In a copy without its git repository, JAXRNN_COMMIT says which commit this is.
set -euo pipefail
folder=${OUT:-}
if [[ $# -gt 0 && $1 != -* ]]; then
  folder=$1
  shift
fi
[[ -z $folder ]] || set -- --folder "$(realpath -m "$folder")" "$@"
root=$(cd "$(dirname "$0")/.." && pwd)

cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export XLA_PYTHON_CLIENT_PREALLOCATE=false # or PyTorch has no memory beside JAX
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-1}
export JAX_COMPILATION_CACHE_DIR=$cache/jax # a child that takes over compiles nothing twice
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export TORCH_EXTENSIONS_DIR=$cache/torch # flashrnn's
"${PYTHON:-python3}" "$root/benchmarks/hopper.py" "$@" &
trap 'kill -TERM $! 2>/dev/null; wait $!' TERM INT # it ends its child first
wait $!
