"""The char-RNN: its logits, loss and gradients against the equations, its dropout, its parameters as a
pytree, and the HELLO of the lecture."""

import dataclasses
import math
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrnn import InputError, ModelConfig, Params, Vocabulary, charlm, init, unroll
from tests.support.oracle import TOLERANCES as ORACLE
from tests.support.oracle import assert_close, reference, unchecked

VOCABULARY = Vocabulary.of("abcdefg")
SIZE, STEPS, BATCH = len(VOCABULARY), 6, 3
CONFIGS = {
    "lstm": ModelConfig("lstm", hidden_size=5, embedding_size=3),
    "gru": ModelConfig("gru", hidden_size=5, embedding_size=3),
    "rnn, three layers": ModelConfig(
        "rnn", layers=3, hidden_size=5, embedding_size=3, activation="relu"
    ),
    "peephole, two layers": ModelConfig(
        "lstm", layers=2, hidden_size=5, embedding_size=3, peephole=True
    ),
    "gru-after, one-hot": ModelConfig("gru", hidden_size=5, embedding_size=0, reset="after"),
    "tied": ModelConfig("lstm", hidden_size=5, embedding_size=5, tie=True),
}
TOLERANCES = {  # as in `oracle.assert_close`, but for the last five
    "float32": ORACLE["float32"],
    "bfloat16": ORACLE["bfloat16"],
    "gradient": 2e-5,  # float32, summed over every character
    "expectation": 0.08,  # of a mean over 4000 masks: 5 standard errors
    "rate": 0.02,  # of 840 units
    "uniform": 1e-6,  # nats
    "init": 0.25,  # nats by which the first loss may miss ln V
    "learned": 0.01,  # nats above the floor
}

FEW = ("peephole, two layers", "gru-after, one-hot", "tied")

configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
few_configs = pytest.mark.parametrize("config", [CONFIGS[name] for name in FEW], ids=FEW)
forward = jax.jit(charlm.forward)


@cache
def model(config: ModelConfig, seed: int = 0) -> Params:
    """Random parameters, none of them zero, so that biases and peepholes matter, too."""
    rng = np.random.default_rng(seed)
    params = init(config, VOCABULARY)
    return jax.tree.map(lambda a: jnp.float32(0.6 * rng.standard_normal(a.shape)), params)


def text(steps: int = STEPS, seed: int = 0) -> jax.Array:
    """Tokens [T, B]."""
    return jnp.asarray(np.random.default_rng(seed).integers(SIZE, size=(steps, BATCH)), jnp.int32)


def random_carry(config: ModelConfig, seed: int = 0) -> charlm.Carry:
    rng = np.random.default_rng(seed)
    zeros = charlm.initial_carry(config, BATCH)
    return jax.tree.map(lambda a: jnp.float32(0.6 * rng.standard_normal(a.shape)), zeros)


def exact(tree: Any) -> Any:
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def by_hand(params: Params, tokens: jax.Array, carry: charlm.Carry) -> tuple[Any, np.ndarray]:
    """The whole model in numpy float64: characters → embedding → cells → logits."""
    cell, after = params.config.make_cell(), []
    embedding = np.eye(SIZE) if params.embedding is None else exact(params.embedding)
    hidden = embedding[np.asarray(tokens)]
    for layer, state in zip(exact(params.layers), exact(carry), strict=True):
        state, hidden = reference(cell, layer, hidden, state)
        after.append(state)
    w_out = embedding.T if params.w_out is None else exact(params.w_out)
    return tuple(after), hidden @ w_out + exact(params.b_out)


def embed_then_project(params: Params, tokens: jax.Array, carry: charlm.Carry) -> jax.Array:
    """The logits without the table that `forward` uses: each character is embedded, then projected."""
    cell = params.config.make_cell()
    hidden = jax.nn.one_hot(tokens, SIZE)
    if params.embedding is not None:
        hidden = hidden @ params.embedding
    for layer, state in zip(params.layers, carry, strict=True):
        _, hidden = unroll(cell, layer, hidden, state, implementation="scan")
    w_out = params.embedding.T if params.w_out is None else params.w_out
    return hidden @ w_out + params.b_out[None, None]


def number(logits: jax.Array) -> jax.Array:
    """A number to differentiate: the logits in a weighted sum."""
    weights = np.random.default_rng(7).standard_normal(logits.shape)
    return (logits * jnp.float32(weights)).sum()


# --- values and gradients -----------------------------------------------------------------------


@pytest.mark.slow
@configs
def test_forward_is_the_equations(config: ModelConfig) -> None:
    """Logits and states, from a state that is not zero."""
    params, tokens, carry = model(config), text(), random_carry(config)
    got = forward(params, tokens, carry)
    assert_close(got, by_hand(params, tokens, carry), TOLERANCES["float32"])


@pytest.mark.slow
@few_configs
def test_table_is_embed_then_project(config: ModelConfig) -> None:
    """For one-hot characters the table is w_x, the product with the one-hot vectors."""
    params, tokens, carry = model(config), text(), random_carry(config)

    def lookup(params: Params) -> jax.Array:
        return number(charlm.forward(params, tokens, carry)[1])

    def project(params: Params) -> jax.Array:
        return number(embed_then_project(params, tokens, carry))

    got, want = (jax.jit(jax.value_and_grad(f))(params) for f in (lookup, project))
    assert_close(got, want, TOLERANCES["gradient"])


@pytest.mark.slow
def test_tied_gradient_is_the_sum_of_both_uses() -> None:
    params, tokens = model(CONFIGS["tied"]), text()
    carry = random_carry(params.config)
    untied_params = params.replace(
        w_out=params.embedding.T, config=ModelConfig("lstm", hidden_size=5, embedding_size=5)
    )
    assert params.w_out is None

    @jax.jit
    @jax.grad
    def gradient(params: Params) -> jax.Array:
        return charlm.loss(params, tokens, carry)[0]

    tied, untied = gradient(params), gradient(untied_params)
    both = untied.embedding + untied.w_out.T
    assert_close(tied.embedding, both, TOLERANCES["gradient"])
    assert_close((tied.layers, tied.b_out), (untied.layers, untied.b_out), TOLERANCES["gradient"])


@pytest.mark.first_case
@few_configs
def test_chunks_are_the_whole(config: ModelConfig) -> None:
    """The state is carried from one call to the next."""
    params, tokens, carry = model(config), text(), random_carry(config)
    whole = forward(params, tokens, carry)
    pieces = []
    for piece in jnp.split(tokens, [2, 4]):
        carry, logits = forward(params, piece, carry)
        pieces.append(logits)
    assert_close((carry, jnp.concatenate(pieces)), whole, TOLERANCES["float32"])


@pytest.mark.first_case
@few_configs
def test_steps_are_forward(config: ModelConfig) -> None:
    params, tokens, carry = model(config), text(), random_carry(config)
    whole = forward(params, tokens, carry)
    step = jax.jit(charlm.step, static_argnums=0)
    weights = charlm.step_params(params)
    rows = []
    for column in tokens:
        carry, logits = step(config, weights, carry, column)
        rows.append(logits)
    assert_close((carry, jnp.stack(rows)), whole, TOLERANCES["float32"])


@pytest.mark.slow
@few_configs
def test_recording_changes_nothing(config: ModelConfig) -> None:
    """`record` returns the state and the logits of `forward`, and the states inside."""
    params, tokens, carry = model(config), text(), random_carry(config)
    after, logits, recorded = jax.jit(charlm.record)(params, tokens, carry)
    assert_close((after, logits), forward(params, tokens, carry), TOLERANCES["float32"])
    assert len(recorded) == config.layers
    for state, inside in zip(after, recorded, strict=True):
        assert_close(inside["hidden"][-1], state.hidden, 0)


@pytest.mark.slow
@few_configs
def test_bfloat16_is_close(config: ModelConfig) -> None:
    """The products are in bfloat16; logits, states and gradients stay float32."""
    params, tokens, carry = model(config), text(), random_carry(config)
    half = params.replace(config=dataclasses.replace(config, dtype="bfloat16"))
    assert charlm.step_params(half).w_out.dtype == jnp.bfloat16

    @jax.jit
    def run(params: Params) -> Any:
        loss, gradient = jax.value_and_grad(lambda p: charlm.loss(p, tokens, carry)[0])(params)
        return charlm.forward(params, tokens, carry), loss, jax.tree.leaves(gradient)

    got, want = run(half), run(params)
    assert_close(got, want, TOLERANCES["bfloat16"])
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype("float32")}


# --- loss ---------------------------------------------------------------------------------------


def test_loss_is_the_mean_of_nats() -> None:
    """The mean over all targets; the returned state has not read the last token."""
    params, tokens = model(CONFIGS["lstm"]), text()
    carry = random_carry(params.config)
    after, logits = by_hand(params, tokens[:-1], carry)
    chance = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    target = np.take_along_axis(chance, np.asarray(tokens)[1:, :, None], axis=-1)
    got = jax.jit(charlm.loss)(params, tokens, carry)
    assert_close(got, (-np.log(target).mean(), after), TOLERANCES["float32"])


@pytest.mark.slow
def test_uniform_logits_cost_ln_of_the_vocabulary() -> None:
    params = model(CONFIGS["lstm"])
    params = params.replace(w_out=0 * params.w_out, b_out=0 * params.b_out + 3)
    got, _ = charlm.loss(params, text(), charlm.initial_carry(params.config, BATCH))
    assert float(got) == pytest.approx(math.log(SIZE), abs=TOLERANCES["uniform"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("lstm", 2), ("lstm", 65), ("gru-after, one-hot", 65), ("tied", 256)],
)
def test_first_loss_is_near_ln_of_the_vocabulary(name: str, size: int) -> None:
    vocabulary = Vocabulary.of("".join(map(chr, range(size))))
    tokens = jnp.asarray(np.random.default_rng(0).integers(size, size=(51, 8)), jnp.int32)
    carry = charlm.initial_carry(CONFIGS[name], 8)
    got, _ = jax.jit(charlm.loss)(init(CONFIGS[name], vocabulary), tokens, carry)
    assert float(got) == pytest.approx(math.log(size), abs=TOLERANCES["init"])


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_hello(cell: Any) -> None:
    """The lecture's pairs (H,E) (E,L) (L,L) (L,O). What follows L is known only from the state, so
    the floor is 0; without a state it would be ln(2) / 2."""
    vocabulary = Vocabulary.of("HELLO")
    config = ModelConfig(cell, hidden_size=8, embedding_size=4)
    tokens = jnp.asarray(vocabulary.encode("HELLO"), jnp.int32)[:, None]
    carry = charlm.initial_carry(config, 1)
    optimizer = optax.adam(0.03)

    @jax.jit
    def learn(params: Params) -> tuple[Params, jax.Array]:
        def step(trained: Any, _: None) -> Any:
            params, state = trained
            value_and_grad = jax.value_and_grad(charlm.loss, has_aux=True)
            (loss, _), gradient = value_and_grad(params, tokens, carry)
            with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in integers
                updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), loss

        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=300)
        return params, losses

    params, losses = learn(init(config, vocabulary))
    assert losses[0] > 1
    assert losses[-1] < TOLERANCES["learned"]
    _, logits = forward(params, tokens[:-1], carry)
    assert vocabulary.decode(logits[:, 0].argmax(axis=-1)) == "ELLO"


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_smoothed_targets_are_mixed_with_uniform_ones(smoothing: float) -> None:
    """Against the cross-entropy with the whole distribution of the targets, in float64."""
    params, tokens = model(CONFIGS["lstm"]), text()
    carry = charlm.initial_carry(params.config, BATCH)
    _, logits = forward(params, tokens[:-1], carry)
    targets = (1 - smoothing) * np.eye(SIZE)[tokens[1:]] + smoothing / SIZE
    wide = np.asarray(logits, np.float64)
    logs = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    want = -(targets * logs).sum(axis=-1).mean()
    got, _ = charlm.loss(params, tokens, carry, label_smoothing=smoothing)
    assert float(got) == pytest.approx(want, rel=TOLERANCES["float32"])


def test_a_bias_of_frequencies_predicts_them() -> None:
    counts = np.array([700, 0, 1, 299])
    got = jax.nn.softmax(charlm.log_frequencies(jnp.asarray(counts)))
    np.testing.assert_allclose(got, (counts + 0.5) / (counts + 0.5).sum(), rtol=1e-6)


# --- dropout ------------------------------------------------------------------------------------


def bare(rate: float) -> Params:
    """One plain layer whose outputs are the logits: V = H, w_out = 1, b_out = 0."""
    config = ModelConfig("rnn", hidden_size=SIZE, embedding_size=3, dropout=rate)
    params = model(config)
    return params.replace(w_out=jnp.eye(SIZE), b_out=jnp.zeros(SIZE))


@pytest.mark.slow
def test_dropout_needs_a_key_and_a_rate() -> None:
    tokens, key = text(), jax.random.key(0)
    carry = charlm.initial_carry(bare(0.5).config, BATCH)
    want = forward(bare(0.0), tokens, carry)
    assert_close(forward(bare(0.5), tokens, carry), want, 0)
    assert_close(forward(bare(0.0), tokens, carry, dropout_key=key), want, 0)
    assert (forward(bare(0.5), tokens, carry, dropout_key=key)[1] == 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_dropout_drops_or_scales_outputs_only(rate: float) -> None:
    """Each output is 0 or divided by the fraction that is kept; the state is not dropped."""
    params, tokens = bare(rate), text(40)
    carry = charlm.initial_carry(params.config, BATCH)
    state, outputs = forward(params, tokens, carry)
    key = jax.random.key(0)
    state_too, dropped = forward(params, tokens, carry, dropout_key=key)
    assert_close(state_too, state, 0)
    assert_close(dropped, jnp.where(dropped == 0, 0, outputs / (1 - rate)), TOLERANCES["float32"])
    standard_error = math.sqrt(rate * (1 - rate) / dropped.size)
    assert float((dropped == 0).mean()) == pytest.approx(rate, abs=5 * standard_error)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.001, 0.01, 0.99, 0.999])
def test_dropout_at_its_ends(rate: float) -> None:
    """Near 0 it drops few units, near 1 most of them, and the others are finite."""
    carry = charlm.initial_carry(bare(rate).config, BATCH)
    _, dropped = forward(bare(rate), text(40), carry, dropout_key=jax.random.key(0))
    assert jnp.isfinite(dropped).all()
    assert float((dropped == 0).mean()) == pytest.approx(rate, abs=TOLERANCES["rate"])


@pytest.mark.slow
def test_dropout_differs_by_key_place_and_layer() -> None:
    params = bare(0.5)
    carry = charlm.initial_carry(params.config, BATCH)
    masks = [
        np.asarray(forward(params, text(), carry, dropout_key=jax.random.key(seed))[1] == 0)
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()
    assert (masks[0][1:] != masks[0][:-1]).any()
    assert (masks[0][:, 1:] != masks[0][:, :-1]).any()


@pytest.mark.slow
def test_dropout_of_two_layers_is_independent() -> None:
    """The first layer outputs ones, the second outputs its input."""
    config = ModelConfig(
        "rnn", layers=2, hidden_size=SIZE, embedding_size=3, activation="relu", dropout=0.5
    )
    params, key = bare(0.5), jax.random.key(0)
    eye, zero, one = jnp.eye(SIZE), jnp.zeros((SIZE, SIZE)), jnp.ones(SIZE)
    layer = type(params.layers[0])
    layers = layer(jnp.zeros((3, SIZE)), zero, one), layer(eye, zero, 0 * one)
    params = params.replace(config=config, layers=layers)
    carry = charlm.initial_carry(config, BATCH)
    (_, second), outputs = forward(params, text(1), carry, dropout_key=key)
    # What came through the dropout of the first layer.
    below = np.asarray(second.hidden)
    assert set(np.unique(below)) == {0, 2}
    above = np.asarray(outputs[0])[below > 0]
    # Other units are dropped in the second.
    assert set(np.unique(above)) == {0, 4}


@pytest.mark.slow
def test_dropout_keeps_the_expectation() -> None:
    params, tokens = bare(0.5), text()
    carry = charlm.initial_carry(params.config, BATCH)

    @jax.jit
    @jax.vmap
    def run(key: jax.Array) -> jax.Array:
        return charlm.forward(params, tokens, carry, dropout_key=key)[1]

    mean = run(jax.random.split(jax.random.key(0), 4000)).mean(axis=0)
    assert_close(mean, forward(params, tokens, carry)[1], TOLERANCES["expectation"])


@pytest.mark.slow
def test_no_gradient_through_dropped_units() -> None:
    params = bare(0.5)
    tokens, carry = text(1), charlm.initial_carry(params.config, BATCH)
    dropped = forward(params, tokens, carry, dropout_key=jax.random.key(0))[1][0] == 0

    @jax.jit
    @jax.grad
    def gradient(params: Params, row: int) -> jax.Array:
        _, outputs = charlm.forward(params, tokens, carry, dropout_key=jax.random.key(0))
        return outputs[0, row].sum()

    for row in range(BATCH):
        bias = gradient(params, row).layers[0].b
        np.testing.assert_array_equal(bias == 0, dropped[row])
    assert 0 < dropped.sum() < dropped.size


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5])
def test_weight_dropout_drops_recurrent_weights(rate: float) -> None:
    """All rows and steps share a mask. Without inputs, unit vectors as the state read out w_h."""
    config = ModelConfig(
        "rnn", hidden_size=SIZE, embedding_size=3, activation="relu", weight_dropout=rate
    )
    w_h = jnp.float32(np.random.default_rng(0).uniform(1, 2, (SIZE, SIZE)))
    layer = bare(0.0).layers[0]
    layer = layer._replace(w_x=0 * layer.w_x, w_h=w_h, b=0 * layer.b)
    params = bare(0.0).replace(config=config, layers=(layer,))
    carry = (type(charlm.initial_carry(config, SIZE)[0])(jnp.eye(SIZE)),)
    tokens = jnp.zeros((2, SIZE), jnp.int32)
    assert_close(forward(params, tokens, carry)[1][0], w_h, TOLERANCES["float32"])
    _, outputs = forward(params, tokens, carry, dropout_key=jax.random.key(0))
    dropped = outputs[0]
    kept = jnp.where(dropped == 0, 0, w_h / (1 - rate))
    assert_close(dropped, kept, TOLERANCES["float32"])
    assert_close(outputs[1], dropped @ kept, TOLERANCES["float32"])
    standard_error = math.sqrt(rate * (1 - rate) / w_h.size)
    assert float((dropped == 0).mean()) == pytest.approx(rate, abs=5 * standard_error)


@pytest.mark.slow
def test_variational_dropout_drops_the_same_at_all_characters() -> None:
    params = bare(0.5)
    params = params.replace(config=dataclasses.replace(params.config, variational=True))
    carry = charlm.initial_carry(params.config, BATCH)
    _, outputs = forward(params, text(20), carry, dropout_key=jax.random.key(0))
    dropped = np.asarray(outputs == 0)
    assert (dropped == dropped[0]).all() and 0 < dropped.sum() < dropped.size
    assert (dropped[0] != dropped[0, :1]).any(), "rows drop different units"


@pytest.mark.slow
@pytest.mark.parametrize("tie", [False, True])
def test_embedding_dropout_drops_numbers_of_the_embedding(tie: bool) -> None:
    """All rows and steps share a mask, and the output keeps the whole embedding if they are tied."""
    config = ModelConfig("rnn", hidden_size=4, embedding_size=4, embedding_dropout=0.5, tie=tie)
    params, tokens = model(config), text()
    carry = charlm.initial_carry(config, BATCH)
    key = jax.random.key(0)

    def loss(embedding: Any) -> jax.Array:
        given = params.replace(embedding=embedding, w_out=jnp.ones((4, SIZE)))
        return forward(given, tokens, carry, dropout_key=key)[1][..., 0].sum()

    gradient = jax.grad(loss)(params.embedding)
    kept = np.asarray(gradient != 0)
    assert 0 < kept.sum() < kept.size
    dropped = params.replace(embedding=jnp.where(kept, 2 * params.embedding, 0))
    w_out = params.embedding.T if tie else params.w_out
    want = forward(dropped.replace(w_out=w_out), tokens, carry)
    assert_close(forward(params, tokens, carry, dropout_key=key), want, TOLERANCES["float32"])
    assert_close(forward(params, tokens, carry)[1], forward(
        params.replace(config=dataclasses.replace(config, embedding_dropout=0.0)), tokens, carry
    )[1], 0)  # fmt: skip


# --- config and parameters ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cell": "xlstm"}, "cell must be one of rnn, lstm, gru, .* not 'xlstm'"),
        ({"layers": 0}, "layers must be at least 1, not 0"),
        ({"layers": -1}, "layers"),
        ({"hidden_size": 0}, "hidden_size must be at least 1, not 0"),
        ({"embedding_size": -1}, "embedding_size must be at least 0, not -1"),
        ({"hidden_size": 2.5}, "hidden_size must be a whole number, not 2.5"),
        ({"layers": True}, "layers must be a whole number, not True"),
        ({"dtype": "float16"}, "dtype must be one of auto, float32, bfloat16, not 'float16'"),
        ({"dropout": 1.0}, "dropout .* not 1.0"),
        ({"dropout": -0.1}, "dropout .* not -0.1"),
        ({"dropout": math.nan}, "dropout .* not nan"),
        ({"weight_dropout": 1.0}, "weight_dropout .* not 1.0"),
        ({"embedding_dropout": 1.0}, "embedding_dropout .* not 1.0"),
        ({"embedding_dropout": 0.1, "embedding_size": 0}, "`embedding_dropout` needs an embedding"),
        ({"tie": True, "embedding_size": 4, "hidden_size": 5}, "`tie` needs .* not 4 and 5"),
        ({"tie": True, "embedding_size": 0, "hidden_size": 5}, "`tie` needs .* not 0 and 5"),
    ],
)
def test_config_refuses(wrong: dict[str, Any], message: str) -> None:
    with unchecked(), pytest.raises(InputError, match=message):
        ModelConfig(**wrong)


@few_configs
def test_init_has_the_shapes_and_the_count(config: ModelConfig) -> None:
    params = init(config, VOCABULARY)
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    assert charlm.count(params) == sum(math.prod(shape) for shape in shapes)
    assert (params.embedding is None) == (config.embedding_size == 0)
    assert (params.w_out is None) == config.tie
    assert len(params.layers) == config.layers
    widths = [config.embedding_size or SIZE, *[config.hidden_size] * (config.layers - 1)]
    assert [layer.w_x.shape[0] for layer in params.layers] == widths
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_count_of_a_known_model() -> None:
    embedding, lstm, output = 7 * 3, 4 * 5 * (3 + 5 + 1), 5 * 7 + 7
    assert charlm.count(model(CONFIGS["lstm"])) == embedding + lstm + output


def test_init_is_a_function_of_the_seed() -> None:
    config = ModelConfig("rnn", layers=2, hidden_size=5, embedding_size=5)
    one, same, other = (init(config, VOCABULARY, seed) for seed in (0, 0, 1))
    assert_close(one, same, 0)
    for name in ("embedding", "w_out"):
        assert (getattr(one, name) != getattr(other, name)).all()
    # No two parts are drawn alike.
    assert (one.layers[0].w_x != one.layers[1].w_x).all()


@pytest.mark.slow
@few_configs
def test_params_are_a_pytree_with_config_and_vocabulary(config: ModelConfig) -> None:
    """map, jit and grad keep the config and the vocabulary."""
    params = model(config)
    tokens, carry = text(), charlm.initial_carry(config, BATCH)

    def loss(params: Params) -> jax.Array:
        return charlm.loss(params, tokens, carry)[0]

    doubled = jax.tree.map(lambda a: 2 * a, params)
    through = [doubled, jax.jit(lambda p: p)(params), jax.jit(jax.grad(loss))(params)]
    for result in through:
        assert isinstance(result, Params)
        assert (result.config, result.vocabulary) == (config, VOCABULARY)
        assert jax.tree.structure(result) == jax.tree.structure(params)
    assert_close(doubled.b_out, 2 * params.b_out, 0)
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(through[-1]))
