"""Characters per second of `jaxrnn.sample`, beside a loop over single characters in PyTorch.

    python benchmarks/sampling_throughput.py            # some minutes; writes a JSON file
    python benchmarks/sampling_throughput.py --quick    # under a minute; writes no file

Both sides have the same weights, in float32 and in bfloat16, and their logits for a text are compared
first. Then they write text in turns in one process: each reads the same prime and draws `length`
characters for every row.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:
    # Run as a script: import from the repository and not from this folder.
    sys.path[0] = str(Path(__file__).parents[1])

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

import jaxrnn
from benchmarks import measure, tables
from benchmarks.problems import VOCABULARY, Size
from jaxrnn import charlm
from jaxrnn.interop.torch import to_torch
from jaxrnn.layers import StackedParams, stacked

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

PRIME = "FIRST CITIZEN:"
EMBED = 64
TEMPERATURE = 0.8
# The largest difference between the logits of both sides, in units of the largest logit.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}
# Batch B, layers L, hidden size H.
SIZES: list[Size] = [(1, 2, 512), (1, 1, 128), (1, 1, 1024), (64, 2, 512)]


class Peer:
    """The same model in PyTorch: embedding → LSTM → linear, one step per call.

    Args:
      params: the model's parameters in jaxrnn.
      device: PyTorch's name of the device.
      dtype: dtype of weights and activations.
    """

    def __init__(self, params: jaxrnn.Params, device: str, dtype: str = "float32") -> None:
        size, hidden = len(params.vocabulary), params.config.hidden_size
        assert params.embedding is not None and params.w_out is not None
        self.device = device
        self.embedding = torch.nn.Embedding(size, EMBED)
        self.lstm = torch.nn.LSTM(EMBED, hidden, params.config.layers)
        self.linear = torch.nn.Linear(hidden, size)
        pairs = [(self.embedding.weight, params.embedding)]
        pairs += [(self.linear.weight, params.w_out.T), (self.linear.bias, params.b_out)]
        net = stacked(params.config.make_cell(), EMBED, layers=params.config.layers)
        weights = to_torch(net, StackedParams(params.layers))
        pairs += [(getattr(self.lstm, name), array) for name, array in weights.items()]
        with torch.no_grad():
            for mine, given in pairs:
                mine.copy_(torch.tensor(np.asarray(given)))
        for module in (self.embedding, self.lstm, self.linear):
            module.to(device, getattr(torch, dtype))

    def logits(self, tokens: Any, state: Any = None) -> tuple[Any, Any]:
        """Return the logits [T, B, V] of tokens [T, B], and the state after them."""
        hidden, state = self.lstm(self.embedding(tokens), state)
        return self.linear(hidden).float(), state

    def sample(self, batch: int, length: int) -> list[str]:
        """Draw `length` characters after PRIME for every row."""
        prime = torch.tensor(VOCABULARY.encode(PRIME).astype(np.int64), device=self.device)
        with torch.inference_mode():
            logits, state = self.logits(prime[:, None].expand(-1, batch))
            drawn = []
            for _ in range(length):
                chances = torch.softmax(logits[-1] / TEMPERATURE, dim=-1)
                drawn.append(torch.multinomial(chances, 1).T)
                logits, state = self.logits(drawn[-1], state)
            # This waits for the device.
            tokens = torch.cat(drawn).cpu().numpy()
        return [PRIME + VOCABULARY.decode(row) for row in tokens.T]


def check(params: jaxrnn.Params, peer: Peer) -> None:
    """Exit with an error unless both sides compute the same logits for a text."""
    tolerance = TOLERANCES[params.config.dtype]
    tokens = np.random.default_rng(0).integers(len(VOCABULARY), size=(100, 2))
    carry = charlm.initial_carry(params.config, 2)
    ours = np.asarray(charlm.forward(params, jnp.asarray(tokens, jnp.int32), carry)[1])
    with torch.inference_mode():
        theirs = peer.logits(torch.tensor(tokens, device=peer.device))[0].cpu().numpy()
    error = measure.error(ours, theirs)
    if not error < tolerance:
        sys.exit(f"error: the logits differ by {error:.1e} of the largest, above {tolerance}")


def measured(size: Size, length: int, repeats: int, device: str) -> dict[str, Any]:
    """Return the raw seconds of one size: of each side's first call, and of its calls in turns."""
    batch, layers, hidden = size
    sides: dict[str, Callable[[], Any]] = {}
    for dtype in TOLERANCES:
        config = jaxrnn.ModelConfig("lstm", layers, hidden, EMBED, dtype=dtype)  # type: ignore[arg-type]
        params = jaxrnn.init(config, VOCABULARY)
        sides[f"jaxrnn {dtype}"] = partial(
            jaxrnn.sample_many, params, PRIME, length, count=batch, temperature=TEMPERATURE
        )
        if torch is not None:
            peer = Peer(params, device, dtype)
            check(params, peer)
            sides[f"torch {dtype}"] = partial(peer.sample, batch, length)
    # The first call compiles.
    first = {name: measure.timed(run)[0] for name, run in sides.items()}
    turns = measure.in_turns(sides, repeats)
    seconds = {name: each["seconds"] for name, each in turns.items()}
    return {"size": size, "length": length, "first_call": first, "seconds": seconds}


def table(results: list[dict[str, Any]]) -> Table:
    """Return a table with a row for each size and dtype."""
    rows = []
    for result in results:
        for dtype in TOLERANCES:
            cells, medians = [tables.joined(result["size"]), dtype], []
            for side in ("jaxrnn", "torch"):
                seconds = result["seconds"].get(f"{side} {dtype}")
                if seconds is None:
                    cells.append("-")
                    continue
                rates = sorted(result["size"][0] * result["length"] / each for each in seconds)
                medians.append(statistics.median(rates))
                cells.append(f"{medians[-1]:,.0f} ({rates[0]:,.0f} to {rates[-1]:,.0f})")
            cells.append(f"{medians[0] / medians[1]:.1f}" if len(medians) == 2 else "-")
            rows.append([*cells, f"{result['first_call'][f'jaxrnn {dtype}']:.1f}"])
    headings = ("B, L, H", "dtype", "jaxrnn", "PyTorch", "ratio", "first call, s")
    return tables.table(
        "characters per second: median (slowest to fastest)", headings, rows, left=2
    )


def main() -> None:
    """Run the command."""
    parser = measure.Parser(description="Time jaxrnn.sample beside a loop in PyTorch.")
    add = parser.add_argument
    add("--size", type=measure.sizes("B,L,H"), nargs="+", metavar="B,L,H", help="sizes")
    add("--length", type=measure.positive, help="characters per row (1000; with --quick 200)")
    add("--repeats", type=measure.positive, help="turns of each side (7; with --quick 3)")
    add("--quick", action="store_true", help="two sizes; writes no file")
    add("--output", type=Path, metavar="FILE", help="JSON file to write")
    flags = parser.parse_args()
    sizes = flags.size or SIZES[: 2 if flags.quick else None]
    length, repeats = (200, 3) if flags.quick else (1000, 7)
    console, device = measure.screen(), "cpu"
    if torch is None:
        console.print('PyTorch is missing, so only jaxrnn is timed: pip install "jaxrnn\\[peers]"')
    else:
        torch.set_num_threads(measure.cores())
        if jax.default_backend() == "gpu" and torch.cuda.is_available():
            device = "cuda"
    results = []
    for size in sizes:
        console.print(f"B, L, H = {tables.joined(size)} ...")
        results.append(measured(size, flags.length or length, flags.repeats or repeats, device))
    console.print(table(results))
    output = flags.output
    if not output and not flags.quick:
        output = measure.RESULTS / f"sampling_throughput-{measure.place()}.json"
    if output:
        record = measure.surroundings(("torch",)) | {"torch_device": device}
        measure.write(record | {"temperature": TEMPERATURE, "results": results}, output)
        console.print(f"written to {output}")


if __name__ == "__main__":
    main()
