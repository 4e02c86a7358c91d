"""The options of `python -m jaxrnn.export`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxrnn.arguments import shown_default
from jaxrnn.literals import Weights, Which


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Write a trained char-RNN to files for other programs, in one or several formats."""

    run: tyro.conf.Positional[Path]
    """Run directory, as written by python -m jaxrnn.train, or safetensors file."""
    safetensors: Path | None = None
    """Write the parameters and a model card to this safetensors file, which jaxrnn can load."""
    stablehlo: Path | None = None
    """Write the sampling function to this StableHLO file, which JAX can run without jaxrnn."""
    onnx: Path | None = None
    """Write the model to this ONNX file."""
    html: Path | None = None
    """Write an HTML page to this file that generates text in a browser."""
    html_weights: Weights = "float16"
    """Number format of the weights in the page: float32 (exact), float16 (half the size) or int8 (a
    quarter of the size)."""
    licence: Annotated[str | None, shown_default("licence of the input file")] = None
    """Licence of the model, for the safetensors file: an SPDX identifier or any text."""
    title: Annotated[str | None, shown_default("from the name of the text")] = None
    """Title of the page."""
    which: Which = "best"
    """Checkpoint of a run to export: the one with the lowest validation loss (best) or the latest."""
