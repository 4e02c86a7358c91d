"""Programs in READMEs, and models with varied output to test them with."""

import re
from pathlib import Path
from typing import Any

import jax

import jaxrnn
from jaxrnn import ModelConfig, Vocabulary, charlm

ROOT = Path(__file__).parent.parent.parent


def program(readme: str, mark: str) -> str:
    """The one program in a README that contains a word."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (found,) = [block for block in blocks if mark in block]
    return found


def lively(vocabulary: Vocabulary, **changes: Any) -> charlm.Params:
    """A model that soon writes another character, even if it always takes the most likely one."""
    config = ModelConfig(**(dict(hidden_size=16, embedding_size=8, layers=2) | changes))
    params = jaxrnn.init(config, vocabulary)
    return params.replace(layers=jax.tree.map(lambda a: 3 * a, params.layers))
