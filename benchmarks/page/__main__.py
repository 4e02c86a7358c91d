"""Characters per second of a page that writes text, in Chromium on one core, for each format of weights.

    python -m benchmarks.page                     # a minute; writes results/page/*.json
    python -m benchmarks.page --run DIRECTORY     # of a trained model, with the loss of quality
    python -m benchmarks.page --screenshot DIRECTORY    # pictures of the page of a trained model

Without a run the model is one LSTM of 512 units with initial weights, whose speed is that of a trained
one. For each format the page is opened again, and writes the same text several times: as a reader sees
it (`page`, with all that is shown) and without showing it (`network`, the JavaScript that computes it).
The first text of a page includes the compilation of the JavaScript and is recorded separately. Last, the
page's texts of SEEDS are compared with those of `jaxrnn.sample`, which has the original weights.
"""

from __future__ import annotations

import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

from rich.table import Table

import jaxrnn
from benchmarks import measure, tables
from benchmarks.page import chromium
from benchmarks.problems import VOCABULARY
from jaxrnn.formats import page

FOLDER = measure.RESULTS / "page"
PRIME = "ROMEO:"
MODEL = jaxrnn.ModelConfig("lstm", layers=1, hidden_size=512, embedding_size=64)
# The texts that are compared with `jaxrnn.sample`.
SEEDS = range(5)
# Width and height of the window and pixels for each CSS pixel.
PICTURES = {"light": (1200, 1140, 1), "dark": (1200, 1140, 1), "phone": (390, 844, 2)}


def main() -> None:
    """Run the command."""
    flags = _flags()
    if not chromium.COMMAND:
        sys.exit("error: no Chromium; install it (apt-get install chromium)")
    if flags.screenshot:
        _draw(jaxrnn.load(flags.screenshot))
        return
    params = jaxrnn.load(flags.run) if flags.run else jaxrnn.init(MODEL, VOCABULARY)
    record = {"benchmark": "page"} | measure.surroundings([])
    record |= {"model": _described(params, flags.run), "length": flags.length}
    record |= {"compared_characters": flags.compared, "weights": {}}
    with tempfile.TemporaryDirectory() as folder, _browser(Path(folder)) as browser:
        record["browser"] = browser.call("Browser.getVersion")["product"]
        record["on_one_core"] = bool(_one_core())
        for kind in get_args(page.Weights):
            file = Path(folder) / "page.html"
            written = page.write(params, file, weights=kind)
            browser.open(file)
            row = written._asdict() | _measured(browser, flags)
            row["equal_characters"] = [
                _equal(browser, params, seed, flags.compared) for seed in SEEDS
            ]
            record["weights"][kind] = row
    measure.screen().print(_table(record))
    output = flags.output or FOLDER / f"{'trained-' if flags.run else ''}{measure.place()}.json"
    measure.write(record, output)
    print(f"written to {output}")


def _flags() -> Any:
    parser = measure.Parser(description="Measure the speed of a page that writes text.")
    add = parser.add_argument
    add(
        "--run",
        type=Path,
        help="run directory or file of the model; default: an LSTM of 512 with initial weights",
    )
    add("--length", type=measure.positive, default=2000, help="characters of a text")
    add("--repeats", type=measure.positive, default=5, help="texts of each kind that are measured")
    add(
        "--compared",
        type=measure.positive,
        default=10_000,
        help="characters of each text that is compared with jaxrnn.sample",
    )
    add("--output", type=Path, help="JSON file")
    add("--screenshot", type=Path, metavar="RUN", help="draw the page of this run instead")
    return parser.parse_args()


def _one_core() -> list[str]:
    """Return the command that keeps a program on one core, where there is one."""
    if not shutil.which("taskset") or not hasattr(os, "sched_getaffinity"):
        return []
    return ["taskset", "-c", str(min(os.sched_getaffinity(0)))]


def _browser(folder: Path) -> chromium.Browser:
    return chromium.Browser(folder / "profile", _one_core())


def _described(params: jaxrnn.Params, run: Path | None) -> dict[str, Any]:
    config = params.config
    return {
        "run": run.name if run else None,
        "cell": config.cell,
        "layers": config.layers,
        "hidden_size": config.hidden_size,
        "embedding_size": config.embedding_size,
        "vocabulary_size": len(params.vocabulary),
    }


# --- the speed ---


def _measured(browser: chromium.Browser, flags: Any) -> dict[str, Any]:
    """Return the characters per second of each text that the open page writes."""
    first = _shown(browser, flags.length)
    shown = [_shown(browser, flags.length) for _ in range(flags.repeats)]
    computed = [_computed(browser, flags.length) for _ in range(flags.repeats)]
    return {"first_page": first, "page": shown, "network": computed}


def _shown(browser: chromium.Browser, length: int) -> float:
    """Return the characters per second of a text that is written with the page's controls."""
    _write(browser, length)
    text, speed = browser.value("[run.text, byId('speed').textContent]")
    assert len(text) == len(PRIME) + length
    return float(speed.split()[0].replace(",", ""))


def _write(browser: chromium.Browser, length: int, prime: str = PRIME) -> None:
    """Let the page write a text, and wait for its end."""
    browser.value(f"byId('prime').value = {prime!r}; byId('length').value = {length}")
    browser.click("#write")
    while not browser.value("run.stopped"):
        # The page shares its core with nothing that this process does.
        time.sleep(0.25)


def _computed(browser: chromium.Browser, length: int) -> float:
    """Return the characters per second of a text that is computed and not shown."""
    options = "{...chosenOptions(), length: " + str(length) + "}"
    milliseconds = browser.value(
        f"""(() => {{
          const tokens = written(network, vocabulary, {options});
          const start = performance.now();
          for (const token of tokens) if (token.units.length === 0) throw new Error("no units");
          return performance.now() - start;
        }})()"""
    )
    return 1000 * length / milliseconds


def _equal(browser: chromium.Browser, params: jaxrnn.Params, seed: int, length: int) -> int:
    """Return how many characters a text of the page shares with that of `jaxrnn.sample`."""
    options = f"{{...chosenOptions(), seed: {seed}, length: {length}}}"
    got = browser.value(
        f"[...written(network, vocabulary, {options})].map(({{text}}) => text).join('')"
    )
    pairs = zip(got, jaxrnn.sample(params, PRIME, length, seed=seed), strict=True)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), len(got)) - len(PRIME)


def _table(record: dict[str, Any]) -> Table:
    """Return a table with a row for each format of weights."""
    table = Table("weights", "file", "KL, nats/char", "same first choice", "page", "network")
    table.add_column("first text")
    table.add_column("equal to sample")
    for kind, row in record["weights"].items():
        speeds = [f"{statistics.median(row[name]):,.0f}/s" for name in ("page", "network")]
        table.add_row(
            kind,
            f"{row['size'] / 1e6:.2f} MB",
            f"{row['divergence']:.2g}",
            f"{100 * row['same']:.2f}%",
            *speeds,
            f"{row['first_page']:,.0f}/s",
            tables.joined(row["equal_characters"]),
        )
    return table


# --- the pictures ---


def _draw(params: jaxrnn.Params) -> None:
    """Draw the page of a model after it has written, light and dark and on a phone."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, _browser(Path(folder)) as browser:
        file = Path(folder) / "page.html"
        page.write(params, file, title="A network that writes like Shakespeare")
        for name, (width, height, scale) in PICTURES.items():
            browser.look(width, height, "dark" if name == "dark" else "light", scale)
            browser.open(file)
            browser.value("byId('temperature').value = 0.8; showSliders()")
            _write(browser, 800, PRIME + "\n")
            _choose(browser)
            output = FOLDER / f"{name}.png"
            _save(browser.picture(), output)
            print(f"written to {output}, {output.stat().st_size // 1000} kB")


def _save(picture: bytes, output: Path) -> None:
    """Write a picture with 256 colours, which are enough for the page and a third of the size."""
    from PIL import Image

    Image.open(io.BytesIO(picture)).convert("RGB").quantize(256).save(output, optimize=True)


def _choose(browser: chromium.Browser) -> None:
    """Select a character that was the fourth choice, and bring the text into view."""
    browser.value(
        """(() => {
          const {characters} = view;
          const found = characters.findIndex(({tokens}, i) => i > 100 && tokens[0].rank === 4);
          view.clicked({target: characters[found].element});
          byId("text").scrollTop = 0;
          if (innerWidth < 600) byId("writing").scrollIntoView();
        })()"""
    )


if __name__ == "__main__":
    main()
