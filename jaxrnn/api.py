"""The public names of `jaxrnn`, which offers them as its own.

Importing this module imports JAX and registers what another process may have serialized.
"""

from jaxrnn import layers as layers
from jaxrnn import serialization
from jaxrnn.charlm import ModelConfig, Params, init
from jaxrnn.charlm.options import SamplingOptions
from jaxrnn.charlm.registry import register_cell
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.errors import InputError
from jaxrnn.formats.safetensors_file import save
from jaxrnn.models import (
    activations,
    inspect_units,
    sample,
    sample_bytes,
    sample_bytes_many,
    sample_lines,
    sample_many,
    score,
    stream,
    stream_bytes,
)
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
from jaxrnn.runs.run import Run, fit
from jaxrnn.training.run_description import load

__all__ = [
    "Cell",
    "Dense",
    "InputError",
    "Lookup",
    "ModelConfig",
    "Network",
    "Params",
    "Run",
    "SamplingOptions",
    "Vocabulary",
    "activations",
    "coupled_lstm",
    "explain",
    "fit",
    "gradient_flow",
    "gru",
    "indrnn",
    "init",
    "inspect_units",
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
    "sample_lines",
    "sample_many",
    "save",
    "score",
    "stream",
    "stream_bytes",
    "unroll",
    "unroll_projected",
]

serialization.register()
register_built()
