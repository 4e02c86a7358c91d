"""List the experiments, run one or all of them, and write their results.

    python -m experiments                        list the experiments
    python -m experiments hello                  run one in full, into experiments/results/hello/
    python -m experiments all --quick            run all with few steps, into runs/quick/
    python -m experiments hello --present        make table, picture and verdict again, without measuring

The result folder of an experiment is replaced as a whole, and only when the new one is complete: a
run that is stopped leaves the earlier results. A full run also writes the verdict into the course
(README.md and README.ko.md).
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import tempfile
import time
from pathlib import Path

import jaxrnn
from benchmarks import measure
from experiments import Outcome, _course
from jaxrnn import console

HERE = Path(__file__).parent
RESULTS = HERE / "results"
QUICK = HERE.parent / "runs" / "quick"


def names() -> list[str]:
    """Return the names of the experiments, in the order of the lecture."""
    found = [path.stem for path in HERE.glob("[!_]*.py")]
    return sorted(found, key=lambda name: (_row_and_docstring(name)[0], name))


def claim(name: str) -> str:
    """Return the first paragraph of an experiment's docstring on one line."""
    return " ".join(_row_and_docstring(name)[1].split("\n\n")[0].split())


def run(name: str, quick: bool) -> Path:
    """Run one experiment, replace its result folder and return the folder."""
    module = importlib.import_module(f"experiments.{name}")
    start = time.perf_counter()
    outcome: Outcome = module.run(quick)
    seconds = time.perf_counter() - start
    record = {
        "name": name,
        "quick": quick,
        "seconds": round(max(seconds, outcome.training_seconds), 1),
        "seeds": outcome.seeds,
        **measure.surroundings(["flax", "optax", "matplotlib"]),
        "numbers": outcome.numbers,
    }
    folder = (QUICK if quick else RESULTS) / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as temporary:
        new = Path(temporary, "new")
        new.mkdir()
        measure.write(record, new / "result.json")
        for page, content in outcome.pages.items():
            (new / page).write_text(content, encoding="utf-8")
        present(name, new)
        if folder.exists():
            folder.rename(Path(temporary, "earlier"))
        new.rename(folder)
    return folder


def present(name: str, folder: Path) -> None:
    """Write the table and the picture of an experiment from the record in its result folder."""
    # The pictures need matplotlib; listing the experiments does not.
    import matplotlib

    from experiments import _drawing

    module = importlib.import_module(f"experiments.{name}")
    record = _course.read(folder)
    given = record["numbers"], record["seeds"]
    (folder / "table.md").write_text(table(module.table(*given)), encoding="utf-8")
    with matplotlib.rc_context(_drawing.STYLE):
        module.draw(*given).savefig(folder / "picture.png")


def table(rows: list[list[str]]) -> str:
    """Return rows as a Markdown table; the first row is the header."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    head, *body = ["| " + " | ".join(row) + " |" for row in escaped]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status, which is 2 after an error in the input."""
    parser = measure.Parser(
        prog="python -m experiments", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "name", nargs="?", help='name of an experiment, or "all"; without one, list the experiments'
    )
    parser.add_argument(
        "--quick", action="store_true", help="use few seeds and steps, and write to runs/quick/"
    )
    parser.add_argument(
        "--present",
        action="store_true",
        help="make the table, the picture and the verdict again from the committed numbers",
    )
    flags = parser.parse_args(arguments)
    if flags.quick and flags.present:
        parser.error("--quick measures and --present does not; give one of them")
    if flags.name is None:
        for name in names():
            print(f"{name:20} {claim(name)}")
        return 0
    if flags.name not in [*names(), "all"]:
        parser.error(f"no experiment {flags.name!r}; choose all or one of {', '.join(names())}")
    if importlib.util.find_spec("matplotlib") is None:
        parser.error('the pictures need matplotlib: pip install "jaxrnn[plot]"')
    status = 0
    for name in names() if flags.name == "all" else [flags.name]:
        print(f"{name}: {claim(name)}", flush=True)
        try:
            folder = RESULTS / name
            if flags.present:
                present(name, folder)
            else:
                folder = run(name, flags.quick)
        except jaxrnn.InputError as error:
            # For example a text that is missing. The other experiments may not need it.
            console.error(error)
            status = 2
            continue
        record = _course.read(folder)
        print(
            f"  {_course.verdict(name, record)}\n  {record['seconds']} s, in {folder}/", flush=True
        )
        if not flags.quick:
            _course.update()
    return status


def _row_and_docstring(name: str) -> tuple[int, str]:
    """Return an experiment's row of the lecture and its docstring, without running the module."""
    module = ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROW":
            return int(ast.literal_eval(node.value)), ast.get_docstring(module) or ""
    raise ValueError(f"experiments/{name}.py must define ROW, its row of the lecture")


if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nstopped; the earlier results were kept", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        console.abandon_output()
        status = console.PIPE_CLOSED
    sys.exit(status)
