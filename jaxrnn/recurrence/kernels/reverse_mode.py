"""A clear error where forward mode is applied to a hand-written backward pass.

JAX's own error says that forward mode cannot be applied to a custom_vjp function, and not what to do.
Here the inputs of such a function pass through an identity. Its tangent can be transposed, which is all
that reverse mode does with it, and raises an error wherever it would be computed.
"""

from __future__ import annotations

from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def reverse_mode_only(implementation: str, over_it: bool, tree: Any) -> Any:
    """Return the same arrays, with tangents that cannot be computed in forward mode.

    Args:
      implementation: its name, for the error.
      over_it: whether forward mode may run over reverse mode, as in `jax.hessian`.
      tree: the arrays.
    """

    def marked(x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return _identity_p.bind(x, implementation=implementation, over_it=over_it)

    return jax.tree.map(marked, tree)


def _differentiated(primals: Any, tangents: Any, over_it: bool, **params: Any) -> tuple[Any, Any]:
    # In a second derivative x has a tangent of its own, which is marked too unless it may be computed.
    (x,), (tangent,) = primals, tangents
    x = x if over_it else _identity_p.bind(x, over_it=over_it, **params)
    return x, _tangent_p.bind(tangent, **params)


def _refused(*_: Any, implementation: str, **__: Any) -> NoReturn:
    raise TypeError(
        f"implementation {implementation!r} has derivatives in reverse mode alone (grad, vjp, jacrev): "
        'for forward mode (jvp, linearize, jacfwd, hessian) choose implementation="scan"'
    )


def _batched(values: Any, axes: Any, **params: Any) -> tuple[Any, Any]:
    return _identity_p.bind(*values, **params), axes[0]


_identity_p = Primitive("reverse_mode_only")
_identity_p.def_impl(lambda x, **_: x)
_identity_p.def_abstract_eval(lambda x, **_: x)
ad.primitive_jvps[_identity_p] = _differentiated
batching.primitive_batchers[_identity_p] = _batched
mlir.register_lowering(_identity_p, lambda _, x, **__: [x])

_tangent_p = Primitive("tangent_in_reverse_mode_only")
_tangent_p.def_impl(_refused)
_tangent_p.def_abstract_eval(lambda tangent, **_: tangent)
ad.primitive_jvps[_tangent_p] = _refused
ad.primitive_transposes[_tangent_p] = lambda cotangent, *_, **__: [cotangent]
batching.primitive_batchers[_tangent_p] = _refused
mlir.register_lowering(_tangent_p, _refused)
