"""Trains on meshes of 8 CPU devices, in a process of its own, since a process has so many or not.

python tests/support/children/mesh.py OUTPUT    # JSON: by cell, implementation and mesh, what came out
"""

import dataclasses
import functools
import json
import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrnn import charlm
from jaxrnn.charlm import sampling
from jaxrnn.data.corpus import make_corpus
from jaxrnn.devices import mesh
from jaxrnn.training import optimizers, stepping
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.evaluation import evaluate
from jaxrnn.training.feed import device_corpus

TEXT = "".join(f"{n} green bottles hanging on the wall, {n * n}\n" for n in range(80))
CORPUS = make_corpus(TEXT)
MODELS = {
    "lstm": charlm.ModelConfig("lstm", hidden_size=16, embedding_size=6, peephole=True),
    "layers": charlm.ModelConfig("lstm", 2, 16, 6, dropout=0.3, weight_dropout=0.2),
    "rnn": charlm.ModelConfig("rnn", hidden_size=16, embedding_size=0),
    "lines": charlm.ModelConfig("lstm", hidden_size=16, embedding_size=6, lines=True),
    "gru-before": charlm.ModelConfig("gru", hidden_size=16, embedding_size=6),
    "gru-after": charlm.ModelConfig(
        "gru", hidden_size=16, embedding_size=16, tie=True, reset="after"
    ),
}
DATA = [{"data": n} for n in (1, 2, 4, 8)]
BOTH = [{"data": 1, "model": 2}, {"data": 4, "model": 2}, {"data": 2, "model": 4}]
RUNS = {
    ("rnn", "scan"): [DATA[0], DATA[3], BOTH[1]],
    ("rnn", "xla"): [*DATA, *BOTH],
    ("rnn", "native"): [DATA[0], DATA[2]],
    ("lstm", "scan"): [DATA[0], BOTH[1]],
    ("lstm", "xla"): [DATA[0], BOTH[1]],
    ("layers", "xla"): [DATA[0], BOTH[1]],
    ("layers", "native"): [DATA[0], DATA[3]],
    ("lines", "scan"): [DATA[0], BOTH[1]],
    ("lines", "xla"): [DATA[0], BOTH[1]],
    ("lines", "native"): [DATA[0], DATA[3]],
    ("gru-before", "xla"): [DATA[0], BOTH[1]],
    ("gru-after", "xla"): [DATA[0], BOTH[1]],
}
STEPS = 6


@functools.cache
def begun(config: TrainingConfig, optimizer: Any) -> stepping.TrainState:
    return jax.tree.map(np.asarray, stepping.create(config, optimizer, CORPUS.vocabulary))


def begins_alike(config: TrainingConfig, optimizer: Any) -> bool:
    """Whether a state made on a mesh lies there as it should, and has the bits of one made at once."""
    alone, devices = begun(config, optimizer), mesh.make(BOTH[1])
    state = stepping.begin(config, optimizer, CORPUS.vocabulary, devices)
    there = jax.tree.map(lambda leaf: leaf.sharding, state)
    same = jax.tree.map(np.array_equal, mesh.gather_full(state), alone)
    return all(jax.tree.leaves(same)) and there == mesh.shardings(devices, alone)


def samples(model: charlm.ModelConfig, sizes: dict[str, int]) -> dict[str, Any]:
    """A text by the model on one device, and by the same that lies on a mesh."""
    params = charlm.init(model, CORPUS.vocabulary, 0)
    devices = mesh.make(sizes, jax.devices()[: math.prod(sizes.values())])
    divided = mesh.local_copy(jax.device_put(params, mesh.shardings(devices, params)))
    return {
        "alone": sampling.sample(params, "green", 40),
        "divided": sampling.sample(divided, "green", 40),
        "devices": len(divided.layers[0].w_h.sharding.device_set),
    }


def train(config: TrainingConfig, devices: Any, memory_map: Any = "never") -> dict[str, Any]:
    """Losses, gradient norms, the validation loss and the weights after STEPS steps."""
    optimizer = optimizers.make_optimizer(config, STEPS)
    source, batches = (
        device_corpus(CORPUS.tokens, memory_map, devices=devices),
        config.batches(CORPUS),
    )
    state = begun(config, optimizer)  # compiled once, not for every mesh
    state = jax.device_put(state, mesh.shardings(devices, state))
    curves = []
    for n in range(0, STEPS, 3):
        ahead = range(n, n + 3)
        windows = source.windows(np.stack([batches.starts(m) for m in ahead]), config.seq_len)
        fresh = np.array([batches.resets_state(m) for m in ahead])
        state, metrics = stepping.run_steps(
            config, optimizer, devices, state, source.tokens, windows, fresh, 3
        )
        curves.append([np.asarray(metric).tolist() for metric in metrics])
    w_h = state.params.layers[0].w_h
    return {
        "curves": np.concatenate(curves, axis=1).tolist(),
        "validation": evaluate(state.params, source, CORPUS, config.batch, config.seq_len)
        if config.model.cell == "gru"
        else 0.0,
        "weights": np.concatenate(
            [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(mesh.gather_full(state.params))]
        ).tolist(),
        "part": [w_h.addressable_shards[0].data.size, w_h.size],
        "programs": stepping.run_steps._cache_size(),
    }


def main(output: str) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    found: dict[str, Any] = {}
    for (name, implementation), meshes in RUNS.items():
        model = dataclasses.replace(MODELS[name], recurrent_init="glorot")  # compiles faster
        config = TrainingConfig(
            model, batch=16, seq_len=8, steps=STEPS, warmup=2, log_every=3, eval_every=3,
            sample_every=0, accumulate=2 if name == "layers" else 1, implementation=implementation,
        )  # fmt: skip
        for sizes in meshes:
            count = sizes["data"] * sizes.get("model", 1)
            devices = mesh.make(sizes, jax.devices()[:count])
            stepping.run_steps.clear_cache()
            key = f"{name} {implementation} {json.dumps(sizes)}"
            found[key] = train(config, devices)
    config = dataclasses.replace(config, implementation="xla")
    found["from a file"] = train(config, mesh.make(DATA[3]), "always")
    found["from the device"] = train(config, mesh.make(DATA[3]))
    found["begins alike"] = begins_alike(config, optimizers.make_optimizer(config, STEPS))
    found["samples"] = [samples(MODELS[name], s) for name in MODELS for s in (DATA[2], BOTH[1])]
    try:
        wide = dataclasses.replace(config, implementation="native")
        train(wide, mesh.make(BOTH[1]))
    except ValueError as error:
        found["refused"] = str(error)
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
