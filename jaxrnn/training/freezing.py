"""Frozen parameters: `python -m jaxrnn.train --freeze embedding,layers.0`.

A parameter is named by its path, such as `layers.0.w_h`. A name stands for all parameters whose path
begins with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from jaxrnn.errors import InputError


def frozen(params: Any, freeze: Sequence[str]) -> Any:
    """Return whether each parameter is frozen, as a pytree of bools.

    Args:
      params: the model; its leaves may be anything.
      freeze: names of parameters.

    Raises:
      InputError: for a name that no parameter has, and if no parameter is left to train.
    """
    paths = [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]
    unknown = [name for name in freeze if not any(_is_in(path, name) for path in paths)]
    if unknown:
        raise InputError(
            f"`freeze` names {', '.join(unknown)}, and the parameters of this model are "
            f"{', '.join(paths)}; layers.0 stands for all of a layer"
        )
    mask = jax.tree_util.tree_map_with_path(
        lambda keys, _: any(_is_in(path_of(keys), name) for name in freeze), params
    )
    if all(jax.tree.leaves(mask)):
        raise InputError("`freeze` names all parameters; leave out those that are to be trained")
    return mask


def stop_gradients(params: Any, freeze: Sequence[str]) -> Any:
    """Return the parameters, with a gradient of zero for the frozen ones."""
    if not freeze:
        return params
    mask = frozen(params, freeze)
    return jax.tree.map(
        lambda leaf, fixed: jax.lax.stop_gradient(leaf) if fixed else leaf, params, mask
    )


def count_trained(params: Any, freeze: Sequence[str]) -> int:
    """Return the number of trained parameters; raises InputError as `frozen` does."""
    sizes = jax.tree.map(
        lambda leaf, fixed: 0 if fixed else leaf.size, params, frozen(params, freeze)
    )
    return sum(jax.tree.leaves(sizes))


def path_of(keys: jax.tree_util.KeyPath) -> str:
    """Return the name of a parameter, such as `layers.0.w_h`."""
    return jax.tree_util.keystr(keys, simple=True, separator=".")


def _is_in(path: str, name: str) -> bool:
    """Return whether a path begins with the parts of a name."""
    return f"{path}.".startswith(f"{name}.")
