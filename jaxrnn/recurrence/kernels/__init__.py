"""Fused and hand-differentiated ways to run a cell over time. `jaxrnn.unroll` chooses among them."""

from __future__ import annotations


class Missing(str):
    """Why an implementation cannot run on this machine, whatever the call: something is missing."""
