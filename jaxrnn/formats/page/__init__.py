"""One HTML page that writes text with a char-RNN, without a network connection and without a server.

    page.write(jaxrnn.load("runs/shakespeare"), "page.html")

README.md describes how the files fit together.
"""

from __future__ import annotations

import dataclasses
import html
import os
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import numpy as np

from jaxrnn import charlm
from jaxrnn.charlm.sampling import default_prime
from jaxrnn.data.vocabulary import Vocabulary, code_points
from jaxrnn.devices.storage import atomic_write
from jaxrnn.errors import InputError
from jaxrnn.formats import pages
from jaxrnn.formats.page import quality
from jaxrnn.formats.page.weights import Weights, encoded, rounded, values

__all__ = ["Weights", "Written", "unsupported_reason", "write"]

CELLS = ("rnn", "lstm", "gru")
# In this order, since the later ones use the earlier ones.
SCRIPTS = ("random.js", "network.js", "writer.js", "text.js", "app.js")


class Written(NamedTuple):
    """A page that was written.

    size: of the file, in bytes.
    divergence, same: the loss of quality by rounding, as in `quality.Loss`; 0 and 1 for float32.
    """

    size: int
    divergence: float
    same: float


def unsupported_reason(
    config: charlm.ModelConfig, vocabulary: Vocabulary | None = None
) -> str | None:
    """Return why a page cannot run a model, or None if it can.

    Args:
      config: the architecture of the model.
      vocabulary: its vocabulary; None for one of characters or bytes.
    """
    if config.cell not in CELLS:
        return f"a page runs the cells {', '.join(CELLS)}, not {config.cell!r}"
    if vocabulary is not None and vocabulary.pattern:
        # JavaScript has another syntax for regular expressions, and for example another \w.
        return "a page reads characters or bytes, not the tokens of a regular expression"
    return None


def write(
    params: charlm.Params,
    path: str | os.PathLike[str],
    *,
    weights: Weights = "float16",
    title: str = "A network that writes",
) -> Written:
    """Write a page that holds a model and draws text with it.

    The page computes with the weights as they are stored in it and rounds nothing else, so with float32
    a seed gives the same text as `jaxrnn.sample`, as long as sums of another order do not change a
    choice; after some thousands of characters they may. A model whose dtype is bfloat16 is run in
    float32. The loss of quality by rounding is measured by `quality.measured`.

    Args:
      params: the model.
      path: the file. It is replaced as a whole or not at all.
      weights: how the page stores matrices: "float32" (exact), "float16" (half the size), or "int8" (a
        quarter), which `weights.rounded` describes.
      title: title of the page. Halves of surrogate pairs, which stand for the bytes of a file name that
        is not UTF-8, become U+FFFD.

    Returns:
      The size of the file and the loss of quality, which the page shows as well.

    Raises:
      InputError: for a cell or a vocabulary that the page cannot run, parameters that are not finite,
        and an unknown format of the weights.
      OSError: if the file cannot be written.
    """
    reason = unsupported_reason(params.config, params.vocabulary)
    if reason:
        raise InputError(f"{reason}; give a model that a page can run")
    if weights not in get_args(Weights):
        raise InputError(
            f"`weights` must be one of {', '.join(get_args(Weights))}, not {weights!r}"
        )
    _check_finite(params)
    original = _in_float32(params)
    stored = rounded(original, weights)
    loss = quality.NONE
    if weights != "float32":
        loss = quality.measured(original, values(stored))
    page = _page(stored, charlm.count(params), weights, loss, title).encode()
    atomic_write(Path(path), page)
    return Written(len(page), *loss)


def _check_finite(params: charlm.Params) -> None:
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(params)):
        raise InputError(
            "the model has parameters that are infinite or not a number, with which a page cannot "
            "write; give one whose training has not diverged"
        )


def _in_float32(params: charlm.Params) -> charlm.Params:
    config = dataclasses.replace(params.config, dtype="float32")
    return params.replace(config=config)  # type: ignore[attr-defined]


def _page(
    model: charlm.Params, parameters: int, weights: Weights, loss: quality.Loss, title: str
) -> str:
    """Return the page of a model from `weights.rounded`."""
    parts = {
        "title": html.escape(pages.valid(title)),
        "model": _described(model, parameters),
        "quality": _quality(model, weights, loss),
        "style": pages.read(__package__, "page.css"),
        "data": pages.data(_content(model)),
        "scripts": "\n".join(
            f"<script>\n{pages.read(__package__, name)}</script>" for name in SCRIPTS
        ),
    }
    return pages.filled(pages.template(__package__), parts)


def _content(model: charlm.Params) -> dict[str, Any]:
    """Return what the JavaScript of the page reads."""
    config, vocabulary = model.config, model.vocabulary
    return {
        "cell": config.cell,
        "activation": config.activation,
        "hidden_size": config.hidden_size,
        "embedding_size": config.embedding_size,
        "by_bytes": vocabulary.by_bytes,
        # Code points, since JSON has no halves of surrogate pairs beside each other.
        "characters": code_points(vocabulary.characters).tolist(),
        "whitespace": vocabulary.whitespace().nonzero()[0].tolist(),
        "prime": default_prime(vocabulary),
        "newline": vocabulary.newline if config.lines else None,
        **encoded(model),
    }


def _described(model: charlm.Params, parameters: int) -> str:
    """Return a sentence about the model."""
    config, vocabulary = model.config, model.vocabulary
    known = "the 256 bytes" if vocabulary.by_bytes else f"{len(vocabulary):,} characters"
    layers = "one layer" if config.layers == 1 else f"{config.layers} layers"
    return (
        f"{_cell(config)} with {layers} of {config.hidden_size:,} units and {parameters:,} parameters "
        f"that predicts the next of {known}."
    )


def _cell(config: charlm.ModelConfig) -> str:
    if config.cell == "lstm":
        return "An LSTM with peepholes," if config.peephole else "An LSTM"
    if config.cell == "gru":
        return "A GRU"
    return f"A plain recurrent network ({config.activation})"


def _quality(model: charlm.Params, weights: Weights, loss: quality.Loss) -> str:
    """Return a sentence about what the page has lost."""
    if weights == "float32":
        return "Its weights are exactly those of the model (float32)."
    divergence = f"{loss.divergence:.5f}" if loss.divergence >= 1e-5 else "less than 0.00001"
    unit = model.vocabulary.unit
    return (
        f"Rounding the weights to {weights} adds {divergence} nats per {unit} (KL divergence). The most "
        f"likely {unit} stays the same at {100 * loss.same:.1f}% of positions."
    )
