"""The char-RNN: characters → embedding → stacked cells → logits → loss (lecture rows 2, 9 and 10).

`Params` carries its own `ModelConfig` and `Vocabulary`, so it is all that `jaxrnn.sample` needs. The
first cell's input product is never computed per character: a character can be only one of V, so
`project` runs once over the V embeddings, and each step looks up its row of that table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import accelerator, mesh, modes
from jaxrnn.errors import InputError, whole_number
from jaxrnn.recurrence import cells, dispatch, sharded
from jaxrnn.recurrence.api import unroll_projected
from jaxrnn.recurrence.dispatch import Implementation
from jaxrnn.recurrence.inputs import Dense, Lookup, Masks
from jaxrnn.shapes import Array, Float, Int, Key, Scalar

Carry = tuple[Any, ...]  # one recurrent state per layer


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of the model."""

    cell: Literal["rnn", "lstm", "gru"] = "lstm"
    """Recurrent cell."""
    layers: int = 1
    """Cells stacked on one another."""
    hidden_size: int = 256
    """Width of each cell, in units."""
    embedding_size: int = 64
    """Width of the character embedding; 0 feeds the characters one-hot."""
    dropout: float = 0.0
    """Share of each layer's outputs dropped in training, 0 to 1."""
    weight_dropout: float = 0.0
    """Share of the recurrent weights dropped in each training step, 0 to 1 (Merity et al. 2018)."""
    tie: bool = False
    """Use the embedding as the output weights too (needs embedding_size = hidden_size)."""
    activation: cells.Activation = "tanh"
    """Of the rnn cell."""
    peephole: bool = False
    """Let the lstm's gates see its cell."""
    forget_bias: float = 1.0
    """Of the lstm's forget gate at the start."""
    reset: cells.Reset = "before"
    """Where the gru's reset gate acts: before the product (the lecture) or after it (cuDNN)."""
    recurrent_init: cells.RecurrentInit = "orthogonal"
    """First recurrent weights."""
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Of the matrix products; parameters, states and sums stay float32. auto takes bfloat16 where the
    hardware multiplies it faster."""

    def __post_init__(self) -> None:
        if self.cell not in ("rnn", "lstm", "gru"):
            raise InputError(f"--cell must be rnn, lstm or gru, not {self.cell!r}")
        for name, least in (("layers", 1), ("hidden_size", 1), ("embedding_size", 0)):
            try:
                number = whole_number(f"--{name.replace('_', '-')}", getattr(self, name), least)
            except ValueError as error:
                raise InputError(str(error)) from None
            object.__setattr__(self, name, number)
        for name in ("dropout", "weight_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"--{name.replace('_', '-')} must be at least 0 and below 1, "
                    f"not {getattr(self, name)}"
                )
        if self.tie and self.embedding_size != self.hidden_size:
            raise InputError(
                f"--tie needs --embedding-size equal to --hidden-size, not {self.embedding_size} and {self.hidden_size}"
            )

    def resolved(self) -> ModelConfig:
        """The same with dtype "auto" replaced by what is fast on the device in use."""
        if self.dtype != "auto":
            return self
        return dataclasses.replace(self, dtype=accelerator.fast_dtype())

    def make_cell(self) -> cells.Cell:
        """The cell of every layer."""
        if self.cell == "rnn":
            return cells.rnn(self.hidden_size, self.activation, self.recurrent_init)
        if self.cell == "gru":
            return cells.gru(self.hidden_size, self.reset, self.recurrent_init)
        return cells.lstm(self.hidden_size, self.peephole, self.forget_bias, self.recurrent_init)


@flax.struct.dataclass
class Params:
    """A char-RNN: its arrays, and as static parts what they mean.

    embedding: [V, E], None where the characters go in one-hot.
    layers: the cells' parameters, from the input upwards.
    w_out: [H, V], None where tied to the embedding.
    b_out: [V].
    """

    embedding: (
        Any  # not annotated by shape: transformations put what they like in a pytree's leaves
    )
    layers: tuple[Any, ...]
    w_out: Any
    b_out: Any
    config: ModelConfig = flax.struct.field(pytree_node=False)
    vocabulary: Vocabulary = flax.struct.field(pytree_node=False)


@modes.fixed()
def init(config: ModelConfig, vocabulary: Vocabulary, seed: int = 0) -> Params:
    """Return a fresh model: float32 parameters drawn from `seed`, the same in every mode of JAX."""
    config = config.resolved()
    if not len(vocabulary):
        raise InputError("the vocabulary is empty; make it with Vocabulary.of(text)")
    keys = iter(jax.random.split(jax.random.key(seed), config.layers + 2))
    size = len(vocabulary)
    embedding = None
    if config.embedding_size:
        scale = (
            config.embedding_size**-0.5 if config.tie else 1.0
        )  # tied, it also makes the first logits
        embedding = scale * jax.random.normal(next(keys), (size, config.embedding_size))
    cell = config.make_cell()
    widths = [config.embedding_size or size] + [config.hidden_size] * (config.layers - 1)
    layers = tuple(cell.init(next(keys), width) for width in widths)
    w_out = None
    if not config.tie:
        w_out = jax.nn.initializers.glorot_uniform()(next(keys), (config.hidden_size, size))
    return Params(embedding, layers, w_out, jnp.zeros(size), config, vocabulary)


def initial_carry(config: ModelConfig, batch: int) -> Carry:
    """The zero state of every layer for `batch` rows."""
    return tuple(config.make_cell().initial_state(batch) for _ in range(config.layers))


def count(params: Params) -> int:
    """How many numbers the model learns."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


class Prepared(NamedTuple):
    """The parameters as the steps use them: in the products' dtype, the first layer as a table.

    table: [V, G] `project` of every character.
    layers: the cells' parameters.
    w_out: [H, V], b_out: [V].
    """

    table: Float[Array, "V G"]
    layers: tuple[Any, ...]
    w_out: Float[Array, "H V"]
    b_out: Float[Array, "V"]


def prepare(params: Params) -> Prepared:
    """Cast the parameters once and look ahead at every character the first layer can meet."""
    config = params.config
    dtype = jnp.dtype(config.dtype)
    layers = jax.tree.map(lambda a: a.astype(dtype), params.layers)
    if params.embedding is None:  # one-hot: the product with the identity is w_x itself
        table = cells.add(layers[0].w_x.astype(jnp.float32), layers[0].b)
    else:
        table = config.make_cell().project(layers[0], params.embedding.astype(dtype))
    w_out = params.w_out if params.w_out is not None else params.embedding.T  # type: ignore[union-attr]
    return Prepared(table, layers, w_out.astype(dtype), params.b_out)


def forward(
    params: Params,
    tokens: Int[Array, "T B"],
    carry: Carry,
    *,
    dropout_key: Key | None = None,
    implementation: Implementation | None = None,
    devices: mesh.Mesh | None = None,
    record: Sequence[str] | None = None,
) -> Any:
    """Logits for the character after each of `tokens`, and the state after the last.

    Args:
      params: the model.
      tokens: [T, B] integers.
      carry: from `initial_carry` or from the call before.
      dropout_key: drops units where given (training); None keeps them all.
      implementation, record: as in `jaxrnn.unroll`; without `record` where there are several devices.
      devices: the mesh that rows and units are divided over; None for one device.

    Returns:
      (carry, logits [T, B, V]); with `record` (carry, logits, recorded), one dict a layer.
    """
    config, prepared = params.config, prepare(params)
    cell = config.make_cell()
    over = devices if devices is not None and devices.size > 1 else None
    whole = dropout_key is None or not config.dropout  # no unit is dropped between the layers
    layers = prepared.layers
    if dropout_key is not None and config.weight_dropout:
        layers = _dropout_weights(layers, config.weight_dropout, dropout_key)
    gx: Lookup | Dense = Lookup(prepared.table, tokens)
    if whole and over is None and record is None:
        dtype = prepared.w_out.dtype
        at_once = dispatch.layers_at_once(cell, len(layers), tokens.shape, dtype, implementation)
        if at_once is not None:
            carry, ys = at_once.run(cell, layers, gx, carry, Masks(None, None), False)
            return carry, output(prepared, ys.astype(dtype))
    run = partial(unroll_projected, record=record)
    if over is not None:
        run = partial(sharded.unroll_projected, over)
    after, recorded = [], []
    hidden = None
    for layer, (weights, state) in enumerate(zip(layers, carry, strict=True)):
        if hidden is not None:
            gx = Dense(hidden, weights.w_x, weights.b)
        state, ys, *inside = run(cell, weights, gx, state, implementation=implementation)
        recorded += inside
        after.append(state)
        hidden = ys.astype(weights.w_h.dtype)
        if dropout_key is not None and config.dropout:
            hidden = _dropout(hidden, config.dropout, jax.random.fold_in(dropout_key, layer))
    assert hidden is not None
    logits = output(prepared, hidden)
    return (tuple(after), logits) if record is None else (tuple(after), logits, recorded)


def step(
    config: ModelConfig, prepared: Prepared, carry: Carry, tokens: Int[Array, "B"]
) -> tuple[Carry, Float[Array, "B V"]]:
    """One character further: the state after `tokens` [B] and the logits of what follows."""
    cell = config.make_cell()
    after = []
    hidden = None
    for weights, state in zip(prepared.layers, carry, strict=True):
        gx = prepared.table[tokens] if hidden is None else cell.project(weights, hidden)
        state, y = cell.step(weights, state, gx)
        after.append(state)
        hidden = y.astype(weights.w_h.dtype)
    assert hidden is not None
    return tuple(after), output(prepared, hidden)


def output(prepared: Prepared, hidden: Float[Array, "... H"]) -> Float[Array, "... V"]:
    """The output layer: logits, whose softmax is the distribution of the next character."""
    return cells.add(cells.product(hidden, prepared.w_out), prepared.b_out)


def loss(
    params: Params, tokens: Int[Array, "T1 B"], carry: Carry, **how: Any
) -> tuple[Scalar, Carry]:
    """Mean cross-entropy in nats per character; the target is the input shifted by one.

    tokens: [T + 1, B]; characters 0..T-1 go in, 1..T are to be predicted.
    how: as for `forward`: dropout_key, implementation, devices.
    """
    carry, logits = forward(params, tokens[:-1], carry, **how)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:])
    return nats.mean(), carry


def _dropout_weights(layers: tuple[Any, ...], rate: float, key: Key) -> tuple[Any, ...]:
    keys = (jax.random.fold_in(key, len(layers) + layer) for layer in range(len(layers)))
    return tuple(
        weights._replace(w_h=_dropout(weights.w_h, rate, key))
        for weights, key in zip(layers, keys, strict=True)
    )


def _dropout(x: Array, rate: float, key: Key) -> Array:
    """Drop each number of x with probability `rate` and scale the rest up, so that the mean stays."""
    words = 2**32
    kept = min(max(round((1 - rate) * words), 1), words - 1)
    keep = jax.random.bits(key, x.shape, jnp.uint32) < jnp.uint32(kept)
    # The product is rounded to x's dtype, its factor is not: in bfloat16 that would shift the mean.
    scaled = x.astype(jnp.float32) * jnp.float32(words / kept)
    return jnp.where(keep, scaled.astype(x.dtype), 0)
