"""jaxrnn: recurrent networks in JAX."""
from jaxrnn.cells import Cell as Cell
from jaxrnn.cells import gru as gru
from jaxrnn.cells import lstm as lstm
from jaxrnn.cells import rnn as rnn
from jaxrnn.unroll import unroll as unroll
