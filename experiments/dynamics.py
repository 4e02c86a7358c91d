"""A trained network stores bits in stable fixed points, one for each state of the bits.

The task is the flip-flop of Sussillo & Barak (2013), "Opening the Black Box". Each of three inputs is 0
at most steps and gives a pulse of +1 or -1 at some; the output of a bit is the sign of its last pulse:

    y_i^t = x_i^t where x_i^t is not 0, else y_i^{t-1}

A network must hold three bits while no pulse comes. Its step without a pulse is a map F of the state s
(h, and for an LSTM also c). Where F(s) = s the network can stay forever. These points are minima of

    q(s) = |F(s) - s|^2 / 2

They are searched from states that the network visits and from points between two of these, by the damped
method of Levenberg and Marquardt. Minima with q below 1e-10 are fixed points, and equal ones are merged;
other minima with q below 1e-4 are slow points. The eigenvalues of the Jacobian dF/ds tell what happens
nearby: where all lie inside of the unit circle the point is stable, and attracts the states around it.
Where k do not, it is a saddle with k unstable directions, on the border between stable points.

Three bits that are stored independently of each other, each with two stable points and one saddle
between them, give 3^3 = 27 points: 8 stable ones at the corners of a cube, 12 saddles with one unstable
direction at its edges, 6 with two at its faces and 1 with three in its centre. The verdict counts the
stable points only. In the picture, the green lines begin at the saddles with one unstable direction and
follow the network without a pulse; the grey line is the state during the sequence of the first panel.

All networks have the same width, learning rate and number of training steps, and the cells are not
compared. A bit lasts if its output has the right sign after 1000 steps without a pulse.

    python -m experiments dynamics      80 s of CPU time
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxrnn
from experiments import Holds, Outcome, Verdict, _drawing
from experiments._fixed_points import Found, search
from experiments._training import train

ROW = 21
BITS = 3
HIDDEN = 24
BATCH = 32
LENGTH = 60
RATE = 1e-2
# Probability of a pulse of a bit at a step.
PULSE = 0.1
CELLS = {"rnn": jaxrnn.rnn(HIDDEN), "lstm": jaxrnn.lstm(HIDDEN), "gru": jaxrnn.gru(HIDDEN)}
# The network of the picture is the first of this cell.
DRAWN = "gru"
# Sequences of the test, and seed of their pulses and of the search; starting points of a search.
SEQUENCES = 256
TEST_SEED = 100
STARTS = 400
# Steps without a pulse after which the bits are read.
LASTING = 1000
# Numbers of points with 0, 1, 2 and 3 unstable directions, if each bit is stored on its own.
CUBE = (8, 12, 6, 1)
# Weights of the first three principal components in both directions of the picture: an oblique view, in
# which no corner of a cube hides another.
VIEW = np.array([[1, 0, 0.5], [0, 1, -0.3]])
# Label, colour and marker of the points with 0, 1, 2 and 3 unstable directions.
KINDS = (
    ("stable", _drawing.BLUE, "o"),
    ("saddle, 1 unstable direction", _drawing.ORANGE, "^"),
    ("saddle, 2 unstable directions", _drawing.PINK, "s"),
    ("saddle, 3 unstable directions", _drawing.RED, "D"),
)


def flip_flop(key: Any, length: int = LENGTH, rows: int = BATCH) -> tuple[Any, Any]:
    """Return pulses and targets, both [T, B, BITS]; the first step has a pulse for each bit."""
    keys = jax.random.split(key)
    shape = (length, rows, BITS)
    shown = jax.random.bernoulli(keys[0], PULSE, shape).at[0].set(True)
    pulses = jnp.where(shown, jax.random.rademacher(keys[1], shape, jnp.float32), 0.0)

    def step(bits: Any, pulse: Any) -> tuple[Any, Any]:
        bits = jnp.where(pulse == 0, bits, pulse)
        return bits, bits

    return pulses, jax.lax.scan(step, pulses[0], pulses)[1]


@functools.partial(jax.jit, static_argnames="net")
def visit(net: jaxrnn.Network, params: Any, pulses: Any) -> tuple[Any, Any]:
    """Return the flat states [T, B, N] after each step and the outputs [T, B, BITS]."""

    def step(state: Any, x: Any) -> tuple[Any, Any]:
        state, hidden = net.cell.step(params.cell, state, net.cell.project(params.cell, x))
        return state, (jnp.concatenate(state, axis=-1), net.output(params, hidden))

    return jax.lax.scan(step, net.cell.initial_state(pulses.shape[1]), pulses)[1]


def unflatten(net: jaxrnn.Network, flat: Any) -> Any:
    """Return the state of a cell from flat states [B, N]."""
    kind = type(net.cell.initial_state(1))
    return kind(*jnp.split(flat, len(kind._fields), axis=-1))


def rest(net: jaxrnn.Network, params: Any, flat: Any) -> tuple[Any, Any]:
    """Return the flat states and the outputs after one step without a pulse, for states [B, N]."""
    gx = net.cell.project(params.cell, jnp.zeros((len(flat), BITS)))
    state, hidden = net.cell.step(params.cell, unflatten(net, flat), gx)
    return jnp.concatenate(state, axis=-1), net.output(params, hidden)


@functools.partial(jax.jit, static_argnames=("net", "steps"))
def wait(net: jaxrnn.Network, params: Any, flat: Any, steps: int) -> tuple[Any, Any]:
    """Return the flat states [steps, B, N] and the outputs [steps, B, BITS] without a pulse."""

    def step(flat: Any, _: Any) -> tuple[Any, Any]:
        now = rest(net, params, flat)
        return now[0], now

    return jax.lax.scan(step, flat, length=steps)[1]


@functools.partial(jax.jit, static_argnames="net")
def expand(net: jaxrnn.Network, params: Any, flat: Any) -> tuple[Any, Any]:
    """Return F(s) - s [B, N] and dF/ds [B, N, N] for states [B, N]."""

    def one(state: Any) -> Any:
        return rest(net, params, state[None])[0][0]

    return jax.vmap(one)(flat) - flat, jax.vmap(jax.jacfwd(one))(flat)


def learn(net: jaxrnn.Network, steps: int, seeds: list[int]) -> tuple[Any, Any]:
    """Return the parameters [seeds, ...], and the mean loss of the last tenth of the steps [seeds]."""

    def loss(params: Any, batch: Any) -> Any:
        pulses, targets = batch
        return optax.squared_error(net.apply(params, pulses)[1], targets).mean()

    params, losses = train(net, loss, flip_flop, steps, seeds, RATE)
    return params, losses[:, -max(1, steps // 10) :].mean(1)


def starting_points(states: Any, count: int) -> Any:
    """Return `count` points [count, N]: half are of `states` [..., N], half lie between two of them."""
    states = np.reshape(states, (-1, np.shape(states)[-1]))
    random = np.random.default_rng(TEST_SEED)
    one, other = states[random.integers(len(states), size=(2, count))]
    share = random.random((count, 1))
    share[: count // 2] = 0
    return one + share * (other - one)


def evaluator(net: jaxrnn.Network, params: Any) -> Callable[[Any], tuple[Any, Any]]:
    """Return the function that `minimise` needs, for the step of a network without a pulse."""

    def evaluate(places: Any) -> tuple[Any, Any]:
        gaps, jacobians = expand(net, params, jnp.asarray(places, jnp.float32))
        return np.array(gaps, np.float64), np.array(jacobians, np.float64)

    return evaluate


def describe(net: jaxrnn.Network, params: Any, states: Any, found: Found) -> dict[str, Any]:
    """Return what the picture shows: one sequence, and points and paths in three principal components.

    Args:
      net: the network.
      params: its parameters.
      states: states [T, B, N] that it visited in the test; the sequence shown is the first.
      found: its fixed points.
    """
    visited = np.reshape(states, (-1, states.shape[-1]))
    centre = visited.mean(0)
    axes = np.linalg.svd(visited - centre, full_matrices=False)[2][:3]
    # From both sides of each saddle with one unstable direction, which paths follow without a pulse.
    starts = [np.zeros((0, len(centre)))]
    for index in np.flatnonzero(found.unstable == 1):
        values, vectors = np.linalg.eig(found.points.jacobians[index])
        away = 0.02 * vectors[:, np.abs(values).argmax()].real
        starts.append(found.points.places[index] + np.stack([away, -away]))
    begin = jnp.asarray(np.concatenate(starts), jnp.float32)
    paths = np.asarray(wait(net, params, begin, 100)[0])
    # Points of a path are far from each other at first and near later on.
    paths = np.concatenate([begin[None], paths[[*range(30), 40, 60, 99]]])

    def project(places: Any) -> Any:
        return ((places - centre) @ axes.T).round(4).tolist()

    return {
        "points": project(found.points.places),
        "paths": project(paths.swapaxes(0, 1)),
        "visited": project(states[:, 0]),
    }


def measure(cell: Any, steps: int, seeds: list[int], starts: int) -> list[dict[str, Any]]:
    """Return what is measured of the networks of a cell, one for each seed."""
    net = jaxrnn.network(cell, BITS, BITS)
    trained, losses = learn(net, steps, seeds)
    pulses, targets = flip_flop(jax.random.key(TEST_SEED), rows=SEQUENCES)
    networks = []
    for index, loss in enumerate(losses):
        params = jax.tree.map(lambda array: array[index], trained)  # noqa: B023
        states, outputs = visit(net, params, pulses)
        later = wait(net, params, states[-1], LASTING)[1][-1]
        found = search(evaluator(net, params), starting_points(states, starts))
        stable = jnp.asarray(found.points.places[found.unstable == 0], jnp.float32)
        network = {
            "loss": round(float(loss), 6),
            "accuracy": round(float(((outputs > 0) == (targets > 0)).mean()), 5),
            "lasting": round(float(((later > 0) == (targets[-1] > 0)).mean()), 5),
            "unstable": found.unstable.tolist(),
            "largest": found.largest.round(4).tolist(),
            "q": [float(f"{q:.2g}") for q in found.points.speeds],
            "outputs": np.asarray(rest(net, params, stable)[1]).round(3).tolist(),
            "slow": found.slow,
        }
        if index == 0 and cell == CELLS[DRAWN]:
            network["picture"] = describe(net, params, np.asarray(states), found)
            network["picture"]["pulses"] = pulses[:, 0].astype(int).tolist()
            network["picture"]["outputs"] = np.asarray(outputs[:, 0]).round(3).tolist()
        networks.append(network)
    return networks


def run(quick: bool) -> Outcome:
    seeds, steps, starts = ([0], 30, 50) if quick else ([0, 1, 2, 3, 4], 1000, STARTS)
    numbers = {
        "steps": steps,
        "hidden": HIDDEN,
        "learning_rate": RATE,
        "starting_points": starts,
        "networks": {name: measure(cell, steps, seeds, starts) for name, cell in CELLS.items()},
    }
    return Outcome(numbers, seeds)


def is_stored(network: dict[str, Any]) -> bool:
    """Return whether there is exactly one stable point for each state of the bits."""
    corners = {tuple(output > 0 for output in outputs) for outputs in network["outputs"]}
    return len(network["outputs"]) == len(corners) == 2**BITS


def table(numbers: dict[str, Any], seeds: list[int]) -> list[list[str]]:
    head = ["network", "seed", "final loss", "accuracy", f"after {LASTING} steps without a pulse"]
    head += ["stable points", "states of the bits", "saddles with 1, 2, 3 unstable directions"]
    rows = [[*head, "slow points", "largest q", "largest eigenvalue of a stable point"]]
    for name, networks in numbers["networks"].items():
        for seed, network in zip(seeds, networks, strict=True):
            kinds = kinds_of(network)
            stable = np.array(network["unstable"]) == 0
            corners = {tuple(output > 0 for output in each) for each in network["outputs"]}
            largest = np.array(network["largest"])[stable].max(initial=0)
            rows.append(
                [
                    name,
                    str(seed),
                    f"{network['loss']:.5f}",
                    f"{network['accuracy']:.4f}",
                    f"{network['lasting']:.4f}",
                    str(kinds[0]),
                    str(len(corners)),
                    ", ".join(str(kind) for kind in kinds[1:]),
                    str(network["slow"]),
                    _drawing.decades(max(network["q"], default=0)),
                    f"{largest:.3f}" if stable.any() else "",
                ]
            )
    return rows


def kinds_of(network: dict[str, Any]) -> Any:
    """Return the number of points with 0 to 3 unstable directions [4]."""
    return (np.array(network["unstable"])[:, None] == np.arange(len(CUBE))).sum(0)


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    networks = [network for each in numbers["networks"].values() for network in each]
    stored = sum(is_stored(network) for network in networks)
    holds = Holds.YES if stored == len(networks) else Holds.PARTLY if stored else Holds.NO
    return Verdict(
        holds,
        f"{stored} of {len(networks)} trained networks (RNN, LSTM and GRU) have exactly {2**BITS} "
        "stable fixed points, one for each state of the three bits.",
        f"학습한 신경망(RNN, LSTM, GRU) {len(networks)}개 중 {stored}개에서 안정 고정점이 정확히 "
        f"{2**BITS}개이며, 세 비트의 상태마다 하나씩 있습니다.",
    )


def draw(numbers: dict[str, Any], seeds: list[int]) -> Figure:
    figure, (task, plane, kinds) = _drawing.figure(3, height=3.4, height_ratios=[1, 1.6, 1])
    draw_task(task, numbers["networks"][DRAWN][0]["picture"])
    draw_plane(plane, numbers["networks"][DRAWN][0])
    draw_kinds(kinds, numbers["networks"])
    return figure


def draw_task(axes: Any, shown: dict[str, Any]) -> None:
    pulses, outputs = np.array(shown["pulses"]), np.array(shown["outputs"])
    for bit in range(BITS):
        # The first bit is at the top.
        base = 3 * (BITS - 1 - bit)
        times = np.flatnonzero(pulses[:, bit])
        axes.vlines(
            times, base, base + pulses[times, bit], color=_drawing.INK, linewidth=4, alpha=0.6
        )
        axes.step(
            np.arange(len(outputs)), base + outputs[:, bit], _drawing.CELLS[DRAWN], where="mid"
        )
    axes.set_yticks([3 * bit for bit in range(BITS)], [f"bit {BITS - bit}" for bit in range(BITS)])
    axes.set(xlim=(-1, len(outputs)), ylim=(-1.5, 3 * BITS - 1.5))
    title = f"Pulses (bars), and what the {DRAWN} gives (lines)"
    _drawing.name_axes(axes, title, "steps", "")


def draw_plane(axes: Any, network: dict[str, Any]) -> None:
    shown = network["picture"]
    axes.plot(*VIEW @ np.transpose(shown["visited"]), color=_drawing.INK, linewidth=0.9, alpha=0.7)
    for path in shown["paths"]:
        axes.plot(*VIEW @ np.transpose(path), color=_drawing.CELLS[DRAWN], linewidth=1.5)
    points, unstable = np.reshape(shown["points"], (-1, 3)), np.array(network["unstable"])
    for count, (label, colour, marker) in enumerate(KINDS):
        chosen = VIEW @ points[unstable == count].T
        axes.plot(*chosen, marker, color=colour, markersize=9, label=label, zorder=3)
    axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    x, y = (f"component {n} {weight:+g} × component 3" for n, weight in enumerate(VIEW[:, 2], 1))
    _drawing.name_axes(axes, f"Fixed points of the {DRAWN}, principal components", x, y)


def draw_kinds(axes: Any, networks: dict[str, Any]) -> None:
    for place, (name, each) in enumerate(networks.items()):
        counts = np.array([kinds_of(network) for network in each])
        where = np.arange(len(CUBE)) + 0.22 * (place - 1)
        for row in counts:
            axes.plot(where, row, "o^s"[place], color=_drawing.CELLS[name], alpha=0.6, markersize=7)
        axes.plot([], [], "o^s"[place], color=_drawing.CELLS[name], label=name)
    for count, expected in enumerate(CUBE):
        axes.plot([count - 0.4, count + 0.4], [expected] * 2, color=_drawing.INK, linewidth=1)
    parts = ("corners", "edges", "faces", "centre")
    axes.set_xticks(range(len(CUBE)), [f"{count}\n({part})" for count, part in enumerate(parts)])
    axes.set_yticks(CUBE)
    axes.set_ylim(0, 1.1 * max(CUBE))
    axes.legend()
    title = f"{len(each)} networks of each cell (lines: parts of a cube)"
    _drawing.name_axes(axes, title, "unstable directions", "fixed points")
