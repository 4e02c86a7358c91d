"""Fused and hand-differentiated ways to run a cell over time. `jaxrnn.unroll` chooses among them."""
