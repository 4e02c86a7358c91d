"""Test frozen parameters: they keep their bits, and the others are trained as if alone."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrnn import InputError, charlm
from jaxrnn.training import freezing, loop, optimizers, stepping
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.report import NullReport
from tests.support.runs import (
    CONFIG,
    CORPUS,
    assert_same_bits,
    change,
    fit,
    run_of,
    start,
    tokens_of,
)

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("without_pictures")]

# The same float32 sums in another order, through a few steps of Adam
ORDER = dict(rtol=1e-4, atol=1e-6)
GRU = change(CONFIG, cell="gru", layers=2, weight_decay=0.3, warmup=0, clip_norm=0.05)


def named(params: Any) -> dict[str, Any]:
    """Return the leaves of a model by name, in the form that the flag takes."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(path).replace("[", ".").replace("]", "") for path, _ in paths]
    return {name[1:]: leaf for name, (_, leaf) in zip(names, paths, strict=True)}


def by_hand(
    config: TrainingConfig, params: charlm.Params, trained: list[str], steps: int
) -> dict[str, Any]:
    """Return the parameters after some steps of optax with the gradient of the trained ones only."""
    rate = functools.partial(optimizers.learning_rate, config, steps=config.total_steps(BATCHES))
    decay = optax.add_decayed_weights(config.weight_decay)

    def chain(scaling: Any, peak: float) -> optax.GradientTransformation:
        return optax.chain(scaling, decay, optax.scale_by_learning_rate(rate(peak)))

    adam = chain(optax.scale_by_adam(config.beta1, config.beta2), config.learning_rate)
    muon = chain(optimizers.muon_by_gate(config.model.hidden_size), config.muon_learning_rate)
    labels = {n: "muon" if n.startswith("layers") and ".w" in n else "adam" for n in trained}
    if config.optimizer == "adam":
        labels = dict.fromkeys(trained, "adam")
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.partition({"adam": adam, "muon": muon}, labels),
    )
    names, leaves = zip(*named(params).items(), strict=True)
    values = {name: leaf for name, leaf in zip(names, leaves, strict=True) if name in trained}
    fixed = dict(zip(names, leaves, strict=True))
    state = optimizer.init(values)
    carry = charlm.initial_carry(config.model, config.batch)

    def loss(values: Any, tokens: Any, carry: Any) -> Any:
        whole = jax.tree.unflatten(jax.tree.structure(params), [*(fixed | values).values()])
        return charlm.loss(whole, tokens, carry)

    for n in range(steps):
        gradient, carry = jax.grad(loss, has_aux=True)(values, tokens_of(config, n), carry)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state, values)
        values = optax.apply_updates(values, updates)
    return values


BATCHES = GRU.batches(CORPUS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "freeze, optimizer, average",
    [
        (("embedding", "layers.0"), "adam", "none"),
        (("layers.1.w_h", "b_out"), "adam", "ema"),
        (("w_out",), "muon", "tail"),
        (("layers",), "muon", "none"),
        (("layers.0", "w_out"), "muon", "none"),
    ],
)
def test_frozen_parameters_keep_their_bits_and_the_others_are_trained_alone(
    freeze: tuple[str, ...], optimizer: Any, average: Any
) -> None:
    """The norm for clipping includes only the gradient of the trained parameters."""
    config = change(GRU, freeze=freeze, optimizer=optimizer, average=average)
    transform, state = start(config)
    before = named(jax.tree.map(np.asarray, state.params))
    step = jax.jit(functools.partial(stepping.train_step, transform, freeze=config.freeze))
    for n in range(4):
        state, metrics = step(state, tokens_of(config, n), jnp.bool_(n == 0))
        state = stepping.averaged(config, state)
    trained = [name for name in before if not any(name.startswith(f) for f in freeze)]
    expected = by_hand(config, start(config)[1].params, trained, 4)
    for params in (state.params, state.model):
        for name, leaf in named(params).items():
            if name not in trained:
                np.testing.assert_array_equal(leaf, before[name], err_msg=name)
            elif params is state.params:
                np.testing.assert_allclose(leaf, expected[name], err_msg=name, **ORDER)
                assert not np.array_equal(leaf, before[name])
    assert float(metrics.grad_norm) > 0


@pytest.mark.slow
def test_the_norm_is_that_of_the_trained_parameters() -> None:
    config = change(CONFIG, freeze=("embedding", "w_out"))
    transform, state = start(config)
    tokens = tokens_of(config, 0)
    carry = charlm.initial_carry(config.model, config.batch)
    gradient = jax.grad(lambda p: charlm.loss(p, tokens, carry)[0])(state.params)
    squares = {name: float((np.asarray(g) ** 2).sum()) for name, g in named(gradient).items()}
    norm = sum(v for name, v in squares.items() if name not in config.freeze) ** 0.5
    step = functools.partial(stepping.train_step, transform, freeze=config.freeze)
    _, metrics = jax.jit(step)(state, tokens, jnp.bool_(True))
    assert float(metrics.grad_norm) == pytest.approx(norm, rel=1e-5)
    assert norm < 0.99 * sum(squares.values()) ** 0.5


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_the_optimizer_has_no_memory_of_frozen_parameters(optimizer: Any) -> None:
    config = change(GRU, freeze=("embedding", "layers.1"), optimizer=optimizer)
    _, state = start(config)
    trained = freezing.count_trained(state.params, config.freeze)
    sizes = [leaf.size for name, leaf in named(state.params).items() if name != "embedding"]
    rest = [leaf.size for leaf in jax.tree.leaves(state.params.layers[1])]
    assert trained == sum(sizes) - sum(rest)
    arrays = [leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    # Muon also has its three coefficients.
    moments = sum(arrays) - (3 if optimizer == "muon" else 0)
    first = jax.tree.leaves(state.params.layers[0])
    matrices = sum(leaf.size for leaf in first if leaf.ndim == 2)
    assert moments == 2 * trained - (matrices if optimizer == "muon" else 0)


def test_without_frozen_parameters_the_state_is_that_of_older_runs() -> None:
    """Checkpoints from before the setting existed can be resumed."""
    _, state = start(CONFIG)
    assert isinstance(state.opt_state, tuple)
    assert len(state.opt_state) == 2, "clipping and Adam"


@pytest.mark.slow
def test_a_resumed_run_is_bit_identical(tmp_path: Path) -> None:
    config = change(GRU, freeze=("layers.0", "embedding"), dropout=0.2, average="ema")
    config = change(config, schedule="constant")
    whole, step, metrics = fit(config, run_of(tmp_path, "whole"))
    run = run_of(tmp_path, "parts")
    fit(change(config, steps=4), run)
    again, _, resumed = fit(config, run)
    assert step == 12
    assert_same_bits(again, whole)
    assert resumed == metrics


# --- the setting ---


@pytest.mark.parametrize(
    "words, expected",
    [
        ((), ()),
        (("embedding,layers.0",), ("embedding", "layers.0")),
        (("w_out", "embedding"), ("embedding", "w_out")),
        (["b_out,", " w_out", ",b_out"], ("b_out", "w_out")),
        (("",), ()),
    ],
)
def test_names_are_separated_by_commas_or_spaces(words: Any, expected: tuple[str, ...]) -> None:
    assert TrainingConfig(freeze=tuple(words)).freeze == expected


@pytest.mark.parametrize(
    "freeze, changes, message",
    [
        ("layer", {}, r"`freeze` names layer, and the parameters of this model are embedding, layers"),
        ("layers.1", {}, r"names layers\.1, and"),
        ("layers.0.w", {}, r"names layers\.0\.w, and .* layers\.0\.w_x, layers\.0\.w_h, layers\.0\.b"),
        ("w_out", dict(tie=True, embedding_size=4), r"names w_out, and .*layers\.0\.b, b_out;"),
        ("embedding", dict(embedding_size=0), r"names embedding, and"),
        ("embedding,layers,w_out,b_out", {}, r"names all parameters; leave out those that are"),
    ],
)  # fmt: skip
def test_bad_names(freeze: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """The library also refuses these values before it writes anything."""
    config = change(CONFIG, freeze=(freeze,), **changes)
    with pytest.raises(InputError, match=message):
        loop.fit(config, CORPUS, tmp_path, NullReport("\n"))
    assert not list(tmp_path.iterdir())
