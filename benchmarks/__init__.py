"""Measurements of jaxrnn: how fast it is here and against whom. `README.md` says what to run."""
