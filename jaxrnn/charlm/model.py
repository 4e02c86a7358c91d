"""The char-RNN: characters → embedding → stacked cells → logits → loss (lecture rows 2, 9 and 10).

`Params` contains its `ModelConfig` and `Vocabulary`, so it is all that `jaxrnn.sample` needs. The input
projection of the first layer is not computed per character: a character is one of V, so `project` runs
once over the V embeddings, and each step looks up its row of the table (`step_params`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxrnn.charlm.config import ModelConfig
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.devices import mesh, modes
from jaxrnn.errors import InputError
from jaxrnn.layers import StackedParams, dropping, running
from jaxrnn.layers.architecture import Architecture
from jaxrnn.recurrence import cells, linalg
from jaxrnn.recurrence.dispatch import Implementation
from jaxrnn.recurrence.problem import Lookup, choose_rows
from jaxrnn.shapes import Array, Bool, Float, Int, Key, Scalar

__all__ = [
    "Carry",
    "ModelConfig",
    "Params",
    "StepParams",
    "count",
    "forward",
    "init",
    "initial_carry",
    "log_frequencies",
    "loss",
    "newline_of",
    "output",
    "record",
    "step",
    "step_params",
]

# The recurrent state of every layer, from the input upwards.
Carry = tuple[Any, ...]


@flax.struct.dataclass
class Params:
    """A char-RNN: its parameters and, as static parts of the pytree, their meaning.

    embedding: [V, E]; None if characters are fed one-hot.
    layers: the parameters of the cells, from the input upwards.
    w_out: [H, V]; None if the embedding is the output weights, too.
    b_out: [V].
    config: the architecture.
    vocabulary: the meaning of the tokens.
    """

    # Not annotated by shape, because transformations put other things than arrays into the leaves.
    embedding: Any
    layers: tuple[Any, ...]
    w_out: Any
    b_out: Any
    config: ModelConfig = flax.struct.field(pytree_node=False)
    vocabulary: Vocabulary = flax.struct.field(pytree_node=False)


@modes.fixed()
def init(config: ModelConfig, vocabulary: Vocabulary, seed: int = 0) -> Params:
    """Return a char-RNN with initial parameters.

    Args:
      config: the architecture.
      vocabulary: the vocabulary of the texts it is for.
      seed: random seed of the initial parameters.

    Returns:
      The model with float32 parameters, which are the same whatever JAX's global modes are.

    Raises:
      InputError: if the vocabulary is empty, or has no line break for a model of lines.
    """
    config = config.resolved()
    if not len(vocabulary):
        raise InputError("the vocabulary is empty; make it with Vocabulary.of(text)")
    if config.lines:
        newline_of(vocabulary)
    keys = iter(jax.random.split(jax.random.key(seed), config.layers + 2))
    size = len(vocabulary)
    embedding = None
    if config.embedding_size:
        # A tied embedding also makes the first logits, which this scale keeps near 1.
        scale = config.embedding_size**-0.5 if config.tie else 1.0
        embedding = scale * jax.random.normal(next(keys), (size, config.embedding_size))
    cell = config.make_cell()
    widths = [config.embedding_size or size] + [config.hidden_size] * (config.layers - 1)
    layers = tuple(cell.init(next(keys), width) for width in widths)
    w_out = None
    if not config.tie:
        w_out = jax.nn.initializers.glorot_uniform()(next(keys), (config.hidden_size, size))
    return Params(embedding, layers, w_out, jnp.zeros(size), config, vocabulary)


def newline_of(vocabulary: Vocabulary) -> int:
    """Return the token of a line break. Raises InputError for a vocabulary without one."""
    if vocabulary.newline is None:
        raise InputError(
            "`lines` needs a line break in the vocabulary, which has none; give a text of several lines"
        )
    return vocabulary.newline


def log_frequencies(counts: Int[Array, "V"]) -> Float[Array, "V"]:
    """Return the output bias with which a model predicts tokens by their frequency alone.

    Args:
      counts: how often each token occurs. Half is added to each, so that tokens that do not occur have
        a finite bias.
    """
    counts = counts.astype(jnp.float32) + 0.5
    return jnp.log(counts / counts.sum())


def initial_carry(config: ModelConfig, batch: int) -> Carry:
    """Return the zero state of every layer, each array [batch, H]."""
    return tuple(config.make_cell().initial_state(batch) for _ in range(config.layers))


def count(params: Params) -> int:
    """Return the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


class StepParams(NamedTuple):
    """Parameters in the form that the steps use: cast, with a table in place of the embedding.

    table: [V, G], the projected input of the first layer for every character.
    layers: the parameters of the cells, in the dtype of the products.
    w_out: [H, V], in the dtype of the products.
    b_out: [V].
    newline: the token at which the state is reset; None for a model that does not read lines.
    """

    table: Float[Array, "V G"]
    layers: tuple[Any, ...]
    w_out: Float[Array, "H V"]
    b_out: Float[Array, "V"]
    newline: Int[Array, ""] | None = None


def step_params(params: Params) -> StepParams:
    """Cast the parameters and project every character's embedding, once for all steps."""
    config = params.config
    dtype = jnp.dtype(config.dtype)
    layers = jax.tree.map(lambda a: a.astype(dtype), params.layers)
    cell, embedding = config.make_cell(), params.embedding
    if embedding is None and cells.is_builtin(cell):
        # The embedding is the identity, so its product with w_x is w_x itself.
        table = linalg.add(layers[0].w_x.astype(jnp.float32), layers[0].b)
    else:
        embedding = jnp.eye(len(params.b_out)) if embedding is None else embedding
        projected = cell.project(layers[0], embedding.astype(dtype))
        table = projected.astype(linalg.wide(dtype))
    w_out = params.embedding.T if params.w_out is None else params.w_out
    newline = jnp.int32(newline_of(params.vocabulary)) if config.lines else None
    return StepParams(table, layers, w_out.astype(dtype), params.b_out, newline)


def forward(
    params: Params,
    tokens: Int[Array, "T B"],
    carry: Carry,
    *,
    dropout_key: Key | None = None,
    implementation: Implementation | None = None,
    devices: mesh.Mesh | None = None,
) -> tuple[Carry, Float[Array, "T B V"]]:
    """Run the model over tokens. A model of lines resets its state before it reads a line break.

    Args:
      params: the model.
      tokens: [T, B] integers from 0 to V - 1.
      carry: the state before the first token, from `initial_carry` or from the call before.
      dropout_key: PRNG key of the dropout in training; None drops nothing.
      implementation: as in `jaxrnn.unroll`.
      devices: the mesh over which rows and hidden units are divided; None for one device.

    Returns:
      (carry, logits [T, B, V]): the state after the last token, and in float32 the logits of the
      character after each token.

    Raises:
      ValueError: for an implementation that is unknown or cannot run this.
    """
    weights = step_params(_with_embedding_dropped(params, dropout_key))
    carry, hidden = running.run(
        _stack(params.config),
        StackedParams(weights.layers),
        Lookup(weights.table, tokens),
        carry,
        key=dropout_key,
        resets=_resets(weights, tokens),
        implementation=implementation,
        devices=devices,
    )
    return carry, output(weights, hidden)


def record(
    params: Params, tokens: Int[Array, "T B"], carry: Carry, names: Sequence[str] = ("hidden",)
) -> tuple[Carry, Float[Array, "T B V"], list[dict[str, Float[Array, "T B H"]]]]:
    """Run the model as `forward` does and record the inside of every step.

    Args:
      params: the model.
      tokens: as for `forward`.
      carry: as for `forward`.
      names: what to record, by the names of the cell's `activations`: "i", "f", "g", "o", "cell" and
        "hidden" for an LSTM, "z", "r", "n" and "hidden" for a GRU, "hidden" for a plain RNN.

    Returns:
      (carry, logits, recorded): as `forward` returns them, and for each layer, from the input upwards,
      an array [T, B, H] for each name.

    Raises:
      ValueError: for a name that the cell cannot record.
    """
    weights = step_params(params)
    carry, hidden, recorded = running.record(
        _stack(params.config),
        StackedParams(weights.layers),
        Lookup(weights.table, tokens),
        carry,
        names,
        resets=_resets(weights, tokens),
    )
    return carry, output(weights, hidden), recorded


def step(
    config: ModelConfig,
    weights: StepParams,
    carry: Carry,
    tokens: Int[Array, "B"],
    *,
    repeated: bool = False,
) -> tuple[Carry, Float[Array, "B V"]]:
    """Run the model over one token per row.

    Args:
      config: the architecture.
      weights: from `step_params`.
      carry: the state before the tokens.
      tokens: [B].
      repeated: whether this is the body of a loop that does not change the weights.

    Returns:
      (carry, logits [B, V]): the state after the tokens, and the logits of the next ones.
    """
    resets = _resets(weights, tokens)
    if resets is not None:
        carry = choose_rows(resets, jax.tree.map(jnp.zeros_like, carry), carry)
    inputs = running.Projected(weights.table[tokens])
    layers = StackedParams(weights.layers)
    carry, hidden = running.step(_stack(config), layers, carry, inputs, repeated=repeated)
    return carry, output(weights, hidden)


def output(weights: StepParams, hidden: Float[Array, "... H"]) -> Float[Array, "... V"]:
    """Return the logits of the next character, the output layer of hidden states [..., H]."""
    return linalg.add(linalg.product(hidden, weights.w_out), weights.b_out)


def loss(
    params: Params,
    tokens: Int[Array, "T1 B"],
    carry: Carry,
    *,
    dropout_key: Key | None = None,
    label_smoothing: float = 0.0,
    implementation: Implementation | None = None,
    devices: mesh.Mesh | None = None,
) -> tuple[Scalar, Carry]:
    """Return the mean cross-entropy in nats per character, and the state after the last input.

    Args:
      params: the model.
      tokens: [T + 1, B]; tokens 0 to T - 1 are the inputs, tokens 1 to T the targets.
      carry: as for `forward`.
      dropout_key: as for `forward`.
      label_smoothing: probability that the targets give to all tokens alike; the target itself has the
        rest (Szegedy et al. 2016, arXiv 1512.00567).
      implementation: as for `forward`.
      devices: as for `forward`.
    """
    carry, logits = forward(
        params,
        tokens[:-1],
        carry,
        dropout_key=dropout_key,
        implementation=implementation,
        devices=devices,
    )
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:])
    if label_smoothing:
        of_all = jax.nn.logsumexp(logits, axis=-1) - logits.mean(axis=-1)
        nats = (1 - label_smoothing) * nats + label_smoothing * of_all
    return nats.mean(), carry


def _resets(weights: StepParams, tokens: Int[Array, "..."]) -> Bool[Array, "..."] | None:
    """Return where the state is reset before a token is read; None if nowhere."""
    return None if weights.newline is None else tokens == weights.newline.astype(tokens.dtype)


def _with_embedding_dropped(params: Params, key: Key | None) -> Params:
    """Return the parameters with a part of the input embedding dropped; the output keeps all of it."""
    rate = params.config.embedding_dropout
    if key is None or not rate:
        return params
    # The keys after those of the dropped outputs and weights of the layers.
    key = jax.random.fold_in(key, 2 * params.config.layers)
    dropped = dropping.dropout(params.embedding, rate, key)
    w_out = params.embedding.T if params.w_out is None else params.w_out
    return params.replace(embedding=dropped, w_out=w_out)  # type: ignore[attr-defined]


def _stack(config: ModelConfig) -> Architecture:
    """Return the stack of layers between the table and the output layer."""
    return Architecture(
        config.make_cell(),
        # The inputs are looked up in the table, which is projected already.
        inputs=config.embedding_size or 1,
        layers=config.layers,
        dropout=config.dropout,
        drop_last=True,
        variational=config.variational,
        weight_dropout=config.weight_dropout,
    )
