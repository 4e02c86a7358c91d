"""More recurrent cells, beside those of the lecture."""

from jaxrnn.recurrence.variants.coupled_gates import coupled_lstm
from jaxrnn.recurrence.variants.independent import indrnn
from jaxrnn.recurrence.variants.layer_norm import layer_norm_gru, layer_norm_lstm
from jaxrnn.recurrence.variants.linear import mingru, minlstm
from jaxrnn.recurrence.variants.minimal_gated import mgu
from jaxrnn.recurrence.variants.mogrifier import mogrifier_lstm
from jaxrnn.recurrence.variants.projection import projected_lstm

__all__ = [
    "coupled_lstm",
    "indrnn",
    "layer_norm_gru",
    "layer_norm_lstm",
    "mgu",
    "mingru",
    "minlstm",
    "mogrifier_lstm",
    "projected_lstm",
]
