"""Strict numerics for every test: no silent promotion of dtypes or ranks, warnings are errors."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# threads of XLA's CPU: those that wait inside an interpreted GPU kernel must not take the last one
os.environ.setdefault("NPROC", "16")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
