"""The check that parameters belong to a network or stack of layers before they are converted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.layers import Stacked, StackedParams
from jaxrnn.recurrence.networks import Network, NetworkParams


def check_fits(net: Network | Stacked, params: Any) -> None:
    """Raise ValueError where parameters are not those of this network or stack of layers."""
    kind = NetworkParams if isinstance(net, Network) else StackedParams
    if not isinstance(params, kind):
        raise ValueError(f"params must be {kind.__name__}, not {type(params).__name__}")
    dtypes = [getattr(leaf, "dtype", jnp.float32) for leaf in jax.tree.leaves(params)]
    # One step that is traced and not computed makes the checks of `apply`.
    xs = jax.ShapeDtypeStruct((1, 1, net.inputs), dtypes[0] if dtypes else jnp.float32)
    jax.eval_shape(lambda params, xs: net.apply(params, xs), params, xs)
