"""Graphs of ONNX, run by onnxruntime."""

from pathlib import Path
from typing import Any

import numpy as np


def names(model: Any) -> tuple[list[str], list[str]]:
    """The names of a graph's inputs and outputs."""
    return [v.name for v in model.graph.input], [v.name for v in model.graph.output]


class Session:
    """A model or a file of ONNX as a function: inputs by name to outputs by name."""

    def __init__(self, model: Any) -> None:
        import onnxruntime

        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        self.session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])

    def __call__(self, **inputs: Any) -> dict[str, np.ndarray]:
        given = {name: np.asarray(array) for name, array in inputs.items()}
        outputs = [output.name for output in self.session.get_outputs()]
        return dict(zip(outputs, self.session.run(outputs, given), strict=True))


def states(state: Any, directions: int = 1, prefix: str = "") -> dict[str, np.ndarray]:
    """The states of all pseudo-layers as the graph names and shapes them."""
    named = {}
    for layer in range(len(state) // directions):
        of_layer = state[layer * directions : (layer + 1) * directions]
        for part in of_layer[0]._fields:
            arrays = [np.asarray(getattr(direction, part)) for direction in of_layer]
            named[f"{prefix}{part}_{layer}"] = np.stack(arrays)
    return named


def following(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The states that the next call takes, from the outputs of a call."""
    finals = {name: array for name, array in outputs.items() if name.startswith("final_")}
    return {name.removeprefix("final_"): array for name, array in finals.items()}
