"""The functions of a trained model, which may be given as parameters, as a run or by its path.

jaxrnn.sample("runs/play-small", "ROMEO:")
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from jaxrnn import charlm
from jaxrnn.charlm import inspection, lines, sampling, scoring
from jaxrnn.runs.run import Run
from jaxrnn.training.run_description import load
from jaxrnn.units import inspecting

P = ParamSpec("P")
R = TypeVar("R")

Model = charlm.Params | Run | str | os.PathLike[str]


def params_of(model: Model) -> charlm.Params:
    """Return the parameters of a model. Errors are those of `load`.

    Args:
      model: the parameters, a run, or the path of a run directory or of a safetensors file.
    """
    if isinstance(model, charlm.Params):
        return model
    return model.params if isinstance(model, Run) else load(model)


def of_any_model(
    function: Callable[Concatenate[charlm.Params, P], R],
) -> Callable[Concatenate[Model, P], R]:
    """Let a function take as its first argument any model that `params_of` accepts."""

    @functools.wraps(function)
    def wrapped(params: Model, *args: P.args, **kwargs: P.kwargs) -> R:
        return function(params_of(params), *args, **kwargs)

    signature = inspect.signature(function)
    first, *others = signature.parameters.values()
    takes = signature.replace(parameters=[first.replace(annotation=Model), *others])
    wrapped.__signature__ = takes  # type: ignore[attr-defined]
    return wrapped


activations = of_any_model(inspection.activations)
inspect_units = of_any_model(inspecting.inspect_units)
sample = of_any_model(sampling.sample)
sample_bytes = of_any_model(sampling.sample_bytes)
sample_bytes_many = of_any_model(sampling.sample_bytes_many)
sample_lines = of_any_model(lines.sample_lines)
sample_many = of_any_model(sampling.sample_many)
score = of_any_model(scoring.score)
stream = of_any_model(sampling.stream)
stream_bytes = of_any_model(sampling.stream_bytes)
