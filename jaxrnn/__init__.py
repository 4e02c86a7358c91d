"""Recurrent networks in JAX: pure-function cells, a fast unroll, and a char-RNN.

cell = jaxrnn.lstm(512)                                   # one of rnn, lstm, gru
state, ys = jaxrnn.unroll(cell, params, xs)               # a cell over time, in any model
jaxrnn.sample(jaxrnn.load("runs/play-small"), "ROMEO:")   # text from a trained run
"""

from jaxrnn import layers as layers
from jaxrnn import serialization
from jaxrnn.charlm import ModelConfig, Params, init
from jaxrnn.charlm.inspection import activations
from jaxrnn.charlm.options import SamplingOptions
from jaxrnn.charlm.registry import register_cell
from jaxrnn.charlm.sampling import (
    sample,
    sample_bytes,
    sample_bytes_many,
    sample_many,
    stream,
    stream_bytes,
)
from jaxrnn.charlm.scoring import score
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.errors import InputError
from jaxrnn.formats.safetensors_file import save
from jaxrnn.recurrence.api import record, record_projected, unroll, unroll_projected
from jaxrnn.recurrence.cells import Cell, gru, lstm, rnn
from jaxrnn.recurrence.dispatch import explain
from jaxrnn.recurrence.inspection import gradient_flow
from jaxrnn.recurrence.kernels import register_built
from jaxrnn.recurrence.networks import Network, network
from jaxrnn.recurrence.problem import Dense, Lookup
from jaxrnn.recurrence.variants import (
    coupled_lstm,
    indrnn,
    layer_norm_gru,
    layer_norm_lstm,
    mgu,
    mingru,
    minlstm,
    mogrifier_lstm,
    projected_lstm,
)
from jaxrnn.training.run_description import load

__all__ = [
    "Cell",
    "Dense",
    "InputError",
    "Lookup",
    "ModelConfig",
    "Network",
    "Params",
    "SamplingOptions",
    "Vocabulary",
    "activations",
    "coupled_lstm",
    "explain",
    "gradient_flow",
    "gru",
    "indrnn",
    "init",
    "layer_norm_gru",
    "layer_norm_lstm",
    "load",
    "lstm",
    "mgu",
    "mingru",
    "minlstm",
    "mogrifier_lstm",
    "network",
    "projected_lstm",
    "record",
    "record_projected",
    "register_cell",
    "rnn",
    "sample",
    "sample_bytes",
    "sample_bytes_many",
    "sample_many",
    "save",
    "score",
    "stream",
    "stream_bytes",
    "unroll",
    "unroll_projected",
]

__version__ = "0.1.0"

serialization.register()
register_built()
