"""Recurrent networks in JAX: pure-function cells, a fast unroll, and a char-RNN.

cell = jaxrnn.lstm(512)                                   one of rnn, lstm, gru
state, ys = jaxrnn.unroll(cell, params, xs)               a cell over time, in anybody's own model
jaxrnn.sample(jaxrnn.load("runs/play-small"), "ROMEO:")   text from a trained run
"""

from jaxrnn import serialization
from jaxrnn.cells import Cell, gru, lstm, rnn
from jaxrnn.charlm import Config, Params, init
from jaxrnn.dispatch import explain
from jaxrnn.errors import InputError
from jaxrnn.inspection import activations, gradient_flow
from jaxrnn.kernels.cpu.build import register_built
from jaxrnn.network import Network, network
from jaxrnn.run_description import load
from jaxrnn.sampling import sample, sample_bytes, stream, stream_bytes
from jaxrnn.text import Vocabulary
from jaxrnn.unroll import unroll, unroll_projected

__all__ = [
    "Cell",
    "Config",
    "InputError",
    "Network",
    "Params",
    "Vocabulary",
    "activations",
    "explain",
    "gradient_flow",
    "gru",
    "init",
    "load",
    "lstm",
    "network",
    "rnn",
    "sample",
    "sample_bytes",
    "stream",
    "stream_bytes",
    "unroll",
    "unroll_projected",
]

serialization.register()
register_built()
