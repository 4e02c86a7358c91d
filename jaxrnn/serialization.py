"""Register the library's pytrees with `jax.export`, so that exported functions can be serialized."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from jax import export

from jaxrnn import charlm
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.recurrence import cells, problem
from jaxrnn.recurrence.networks import NetworkParams

NAMEDTUPLES: tuple[Any, ...] = (
    *(cells.RNNParams, cells.LSTMParams, cells.GRUParams),
    *(cells.RNNState, cells.LSTMState, cells.GRUState),
    *(problem.Lookup, problem.Dense, NetworkParams),
)


def register() -> None:
    """Register each class under its own name, so that any process that imports jaxrnn can read it."""
    for kind in NAMEDTUPLES:
        export.register_namedtuple_serialization(kind, serialized_name=f"jaxrnn.{kind.__name__}")
    export.register_pytree_node_serialization(
        charlm.Params,
        serialized_name="jaxrnn.Params",
        serialize_auxdata=_written,
        deserialize_auxdata=_read,
    )


def _written(static: tuple[charlm.ModelConfig, Vocabulary]) -> bytes:
    return json.dumps([dataclasses.asdict(part) for part in static]).encode()


def _read(content: bytes) -> tuple[charlm.ModelConfig, Vocabulary]:
    config, vocabulary = json.loads(content)
    return charlm.ModelConfig(**config), Vocabulary(**vocabulary)
