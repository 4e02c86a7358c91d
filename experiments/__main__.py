"""`python -m experiments`: lists the experiments, runs one or all, and writes what came out.

    python -m experiments                        what there is
    python -m experiments hello                  one in full, into experiments/results/hello/
    python -m experiments all --quick            all, small, into runs/quick/, to see that they run

An experiment's folder is replaced as a whole and only when it is complete: a run that is stopped leaves
the former results. A full run also rewrites the gallery, README.md, from all the results there are.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path

import jaxrnn
from experiments import Outcome
from jaxrnn import console

HERE = Path(__file__).parent
RESULTS, QUICK, GALLERY = HERE / "results", HERE.parent / "runs" / "quick", HERE / "README.md"

sys.path.append(str(HERE.parent / "benchmarks"))
import measure  # noqa: E402


def names() -> list[str]:
    """The experiments, in the order of the lecture."""
    found = [path.stem for path in HERE.glob("[!_]*.py")]
    return sorted(found, key=lambda name: (_described(name)[0], name))


def claim(name: str) -> str:
    """The first paragraph of an experiment's docstring, on one line."""
    return " ".join(_described(name)[1].split("\n\n")[0].split())


def run(name: str, quick: bool) -> Path:
    """Run one experiment and replace its folder. Returns the folder."""
    start = time.perf_counter()
    outcome: Outcome = importlib.import_module(f"experiments.{name}").run(quick)
    seconds = time.perf_counter() - start
    record = {
        "name": name,
        "claim": claim(name),
        "sentence": outcome.sentence,
        "quick": quick,
        "seconds": round(seconds, 1),
        "seeds": outcome.seeds,
        **measure.surroundings(["flax", "optax", "matplotlib"]),
        "numbers": outcome.numbers,
    }
    folder = (QUICK if quick else RESULTS) / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as temporary:
        new, former = Path(temporary, "new"), Path(temporary, "former")
        new.mkdir()
        (new / "table.md").write_text(table(outcome.table), encoding="utf-8")
        measure.write(record, new / "result.json")
        outcome.figure.savefig(new / "picture.png", dpi=120)
        for page, content in outcome.pages.items():
            (new / page).write_text(content, encoding="utf-8")
        if folder.exists():
            folder.rename(former)
        new.rename(folder)
    return folder


def table(rows: list[list[str]]) -> str:
    """Rows as Markdown, the first one as heads."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    head, *body = ["| " + " | ".join(row) + " |" for row in escaped]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body]) + "\n"


def gallery() -> str:
    """README.md: each claim, its picture and what came out, from the results."""
    parts = [INTRODUCTION]
    for name in names():
        path = RESULTS / name / "result.json"
        if not path.exists():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        parts.append(
            f"## {name}\n\n{claim(name)}\n\n"
            f"![{name}](results/{name}/picture.png)\n\n"
            f"{record['sentence']} "
            f"({', '.join(_links(path.parent))}; {record['seconds']:.0f} s on "
            f"{record['cores']} cores, {record['date'][:10]})\n"
        )
    return "\n".join(parts)


def _links(folder: Path) -> list[str]:
    """To an experiment's code and to all it wrote, but for the picture that is shown."""
    named = {"table.md": "table", "result.json": "numbers"}
    named["page.html"] = "page, to download and open in a browser"
    there = {path.name for path in folder.iterdir()} - {"picture.png"}
    names = [name for name in named if name in there] + sorted(there - named.keys())
    links = [f"[{named.get(name, name)}](results/{folder.name}/{name})" for name in names]
    return [f"[code]({folder.name}.py)", *links]


INTRODUCTION = """# The lecture's claims, shown

Each file here takes one claim of the lecture, runs it, and writes a table, the numbers and a picture. \
This page is made from the results by the runner; its times \
leave out models that were trained before (they stay in runs/experiments/).

```bash
python -m experiments                        # what there is
python -m experiments hello                  # one in full, into experiments/results/hello/
python -m experiments all --quick            # all, small, into runs/quick/, to see that they run
```

A new experiment is one file: its docstring begins with the claim, and `run(quick)` returns an \
`Outcome` (see `__init__.py`).
"""


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit status: 2, with one line, for bad input."""
    parser = measure.Parser(
        prog="python -m experiments", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("name", nargs="?", help="an experiment, or all; none lists them")
    parser.add_argument(
        "--quick", action="store_true", help="fewer seeds and steps, into runs/quick/"
    )
    flags = parser.parse_args(arguments)
    if flags.name is None:
        for name in names():
            print(f"{name:20} {claim(name)}")
        return 0
    if flags.name not in [*names(), "all"]:
        parser.error(f"there is no experiment {flags.name!r}; there are all, {', '.join(names())}")
    if importlib.util.find_spec("matplotlib") is None:
        parser.error('the pictures need matplotlib: pip install "jaxrnn[plot]"')
    status = 0
    for name in names() if flags.name == "all" else [flags.name]:
        print(f"{name}: {claim(name)}", flush=True)
        try:
            folder = run(name, flags.quick)
        except jaxrnn.InputError as error:  # as a text that is missing; the others need not
            console.error(error)
            status = 2
            continue
        record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        print(f"  {record['sentence']}\n  {record['seconds']} s, in {folder}/", flush=True)
        if not flags.quick:
            GALLERY.write_text(gallery(), encoding="utf-8")
    return status


def _described(name: str) -> tuple[int, str]:
    """An experiment's row of the lecture and its docstring, read without running it."""
    module = ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROW":
            return int(ast.literal_eval(node.value)), ast.get_docstring(module) or ""
    raise ValueError(f"experiments/{name}.py does not say its ROW of the lecture")


if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nstopped; the former results are as they were", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        console.abandon_output()
        status = console.PIPE_CLOSED
    sys.exit(status)
