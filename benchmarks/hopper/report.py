"""The tables of a record, and the goals that its ratios are compared with.

A floor is the shortest time of one forward step of an LSTM in bfloat16 on an H200. It is derived and not
measured, from 990 TFLOP/s, 30 TB/s of shared memory, and 1 to 2 µs for all blocks to synchronise. The
floor of a backward step is 1.7 times that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.problems import PASSES
from benchmarks.tables import joined, medians

OWN = ("jaxrnn hopper", "jaxrnn xla")
# The fields that identify a job.
PLACE = ("stage", "cell", "setting", "size", "dtype", "mode")
RIVALS = ("torch", "torch float16", "jaxrnn cudnn", "jaxrnn cudnn float16", "flashrnn")
# The name of `cudnn` in results that are older than its float16.
RIVALS += ("jaxrnn cudnn float32",)
FLAX = ("flax nnx", "flax linen")
# Batches and hidden sizes for which there are goals, beside all batches of small widths.
BATCHES, WIDTHS = range(16, 128 + 1), range(512, 1024 + 1)
SMALL_WIDTHS = range(1, 256 + 1)
# Goals: faster than the best rival in forward + backward, faster than flax, slower than the floor.
TIMES_RIVAL = {"lstm": 1.2, "gru-before": 2.5, "gru-after": 2.5}
TIMES_RIVAL_OF_SMALL = 1.5
TIMES_FLAX = 10.0
TIMES_FLOOR = 2.0
# Microseconds by hidden size, and for batches up to a number of rows.
FLOORS = {
    512: {128: 1.1, 256: 1.3},
    1024: {16: 1.8, 64: 2.0, 128: 2.8, 256: 4.0},
}
# The floor of a backward step, in units of that of a forward step.
BACKWARD = 1.7
# The largest error, in units of the error of "xla" in the same dtype.
RIGHT = 3.0
# The stages that time passes.
TIMED = ("table", "flashrnn", "latency")


def floor(job: dict[str, Any], what: str) -> float | None:
    """Return the floor of one step in seconds; None if none was derived."""
    batch, _, _, hidden = job["size"]
    rows = [rows for rows in FLOORS.get(hidden, {}) if rows >= batch]
    if job["cell"] != "lstm" or job["dtype"] != "bfloat16" or not rows:
        return None
    return FLOORS[hidden][min(rows)] * 1e-6 * (1 if what == PASSES[0] else 1 + BACKWARD)


def fastest(times: dict[str, float], names: tuple[str, ...]) -> str | None:
    """Return the fastest of the named contenders that were timed."""
    return min(
        (name for name in names if name in times), key=lambda name: times[name], default=None
    )


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return ratios of a result's medians, the goal of each (null: none) and whether it is met.

    The ratios of rivals and flax are their time divided by that of the faster one of OWN. The ratio of
    the floor is the time of OWN's first divided by the floor.
    """
    job, found = result["job"], []
    if job["stage"] not in TIMED:
        return []
    for what, contenders in result.get("passes", {}).items():
        times = medians(contenders)
        if job["stage"] == "latency":
            least = floor(job, what)
            if least and OWN[0] in times:
                ratio = times[OWN[0]] / job["size"][1] / least
                wanted = TIMES_FLOOR if job["size"][3] == 512 and what == PASSES[0] else None
                found.append(_goal(what, "floor", ratio, wanted, ratio <= TIMES_FLOOR))
            continue
        mine = fastest(times, OWN)
        for goal, names in ("rival", RIVALS), ("flax", FLAX):
            name = fastest(times, names)
            if mine and name:
                ratio, wanted = times[name] / times[mine], _wanted(job, what, goal)
                found.append(_goal(what, goal, ratio, wanted, ratio >= (wanted or 0)))
    return found


def is_right(result: dict[str, Any]) -> bool | None:
    """Return whether errors are near those of "xla" and calls repeatable; None if it did not run."""
    kernels, plain = (result.get("contenders", {}).get(name, {}) for name in OWN)
    if "left_out" in kernels or OWN[0] in (*result["lost"], *result["without"]):
        return False
    if "values" not in kernels or "values" not in plain:
        return None
    near = all(kernels[k] <= RIGHT * plain[k] for k in ("values", "gradients"))
    return near and kernels["moved"] <= plain["moved"]


def show(record: dict[str, Any], console: Console) -> None:
    """Print the tables of every stage, then the missing contenders and the reasons."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for result in record["results"]:
        stages.setdefault(result["job"]["stage"], []).append(result)
    for stage, results in stages.items():
        console.print(_SHOWN[stage](f"{stage}: {_MEANING[stage]}", results))
    say = console.print
    for name, why in record["missing"].items():
        say(f"without {name}: {why}", markup=False, soft_wrap=True)
    for (stage, name, why), places in _left_out(record["results"]).items():
        where = places[0] + f" and {len(places) - 1} more" * (len(places) > 1)
        say(f"{stage} without {name} at {where}: {why}", markup=False, soft_wrap=True)
    for name, stage in record["stages"].items():
        line = f"{name}: {stage['seconds']:.0f} s, {stage['done']} done, {stage['left']} left"
        say(line, markup=False, soft_wrap=True)
    say(verdict(record), markup=False, soft_wrap=True)


def summary(result: dict[str, Any]) -> list[str]:
    """Return the errors, microseconds or characters per second of all contenders, as short texts."""
    job, found = result["job"], []
    for name, errors in result.get("contenders", {}).items():
        numbers = [f"{what} {errors[what]:.1e}" for what in _ERRORS if what in errors]
        found += [f"{name} {' '.join(numbers)}"] if numbers else []
    for what, contenders in result.get("passes", {}).items():
        times = medians(contenders)
        steps = [f"{name} {times[name] / job['size'][1] * 1e6:.2f}" for name in times]
        found += [f"{what}, us a step: {', '.join(steps)}"] if steps else []
    if "characters" in result:
        times = medians(result["contenders"])
        rates = [f"{name} {result['characters'] / time:,.0f}" for name, time in times.items()]
        found.append(f"characters/s: {', '.join(rates)}")
    return found


def verdict(record: dict[str, Any]) -> str:
    """Return how many results are right and how many goals are met."""
    judged = [g for r in record["results"] for g in goals(r) if g["wanted"] is not None]
    answers = [is_right(r) for r in record["results"] if r["job"]["stage"] == "right"]
    known = [answer for answer in answers if answer is not None]
    return (
        f"kernels right in {sum(known)} of {len(known)} checks; "
        f"goals met: {sum(g['met'] for g in judged)} of {len(judged)}"
    )


# --- a table for every stage --------------------------------------------------------------------


def _errors(title: str, results: list[dict[str, Any]]) -> Table:
    made = _table(
        title, "cell", "dtype", "B, T, I, H", "mode", "who", "values", "gradients", "moved"
    )
    made.add_column("right")
    for result in results:
        job = result["job"]
        place = [job["cell"], job["dtype"], joined(job["size"]), job.get("mode", "")]
        for name, errors in result.get("contenders", {}).items():
            numbers = [f"{errors[k]:.1e}" if k in errors else "-" for k in _ERRORS]
            answer = {True: "yes", False: "NO", None: "-"}[is_right(result)]
            made.add_row(*place, name, *numbers, answer if name == OWN[0] else "")
    return made


_ERRORS = ("values", "gradients", "moved")


def _times(title: str, results: list[dict[str, Any]]) -> Table:
    made = _table(title, "cell", "B, T, I, H", "pass")
    every = [c for r in results for c in r.get("passes", {}).values()]
    names = dict.fromkeys(
        n for contenders in every for n, c in contenders.items() if "seconds" in c
    )
    for name in names:
        made.add_column(name.replace("float", "f"), justify="right")
    latency = results[0]["job"]["stage"] == "latency"
    headings = ("floor", "x floor") if latency else ("rival / own", "flax / own")
    for heading in headings:
        made.add_column(heading, justify="right")
    for result in results:
        job, judged = result["job"], goals(result)
        for what, contenders in result.get("passes", {}).items():
            times = medians(contenders)
            ratios = {goal["goal"]: _said(goal) for goal in judged if goal["pass"] == what}
            least = floor(job, what)
            extra = [ratios.get("rival", "-"), ratios.get("flax", "-")]
            if latency:
                extra = [f"{least * 1e6:.1f}" if least else "-", ratios.get("floor", "-")]
            steps = [
                f"{times[n] / job['size'][1] * 1e6:,.2f}" if n in times else "-" for n in names
            ]
            made.add_row(job["cell"], joined(job["size"]), what, *steps, *extra)
    return made


def _rates(title: str, results: list[dict[str, Any]]) -> Table:
    made = _table(title, "what", "jaxrnn by", "who", "characters/s", "x torch")
    for result in results:
        picked = dict.fromkeys(why.partition(":")[0] for why in result.get("picked", {}).values())
        place = [result["job"]["setting"], ", ".join(picked)]
        characters = result.get("characters", 0)
        times = medians(result.get("contenders", {}))
        for name, time in times.items():
            ratio = f"{times['torch'] / time:.2f}" if "torch" in times else "-"
            made.add_row(*place, name, f"{characters / time:,.0f}", ratio)
    return made


_MEANING = {
    "right": "largest error relative to float64, in units of each array's largest entry",
    "others": "errors of the peers",
    "table": "µs per step of time, median; + a goal met, ! missed",
    "flashrnn": "µs per step of time, median; + a goal met, ! missed",
    "latency": "the recurrence alone, µs per step of time, median",
    "training": "median",
}
_SHOWN = {"right": _errors, "others": _errors, "table": _times, "flashrnn": _times}
_SHOWN |= {"latency": _times, "training": _rates}


def _table(title: str, *headings: str) -> Table:
    made = Table(title=title, title_justify="left", padding=(0, 1, 0, 0), box=None)
    for heading in headings:
        made.add_column(heading, no_wrap=True)
    return made


def _wanted(job: dict[str, Any], what: str, goal: str) -> float | None:
    batch, _, _, hidden = job["size"]
    small = hidden in SMALL_WIDTHS
    if not small and (batch not in BATCHES or hidden not in WIDTHS):
        return None
    if goal == "flax":
        return TIMES_FLAX
    if what != PASSES[1]:
        return None
    return TIMES_RIVAL_OF_SMALL if small else TIMES_RIVAL[job["cell"]]


def _goal(what: str, goal: str, ratio: float, wanted: float | None, met: bool) -> dict[str, Any]:
    return {"pass": what, "goal": goal, "ratio": ratio, "wanted": wanted} | {
        "met": met if wanted is not None else None
    }


def _said(goal: dict[str, Any]) -> str:
    return f"{goal['ratio']:.2f}" + {True: " +", False: " !", None: "  "}[goal["met"]]


def _left_out(results: list[dict[str, Any]]) -> dict[tuple[str, str, str], list[str]]:
    """Return where contenders are missing, by stage, name and reason."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for result in results:
        job = result["job"]
        place = " ".join(str(job[k]) for k in PLACE[1:] if k in job)
        for name, why in _reasons(result):
            places.setdefault((job["stage"], name, why), []).append(place)
    return places


def _reasons(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "failed" in result:
        yield "all contenders", result["failed"]
    yield from result.get("unserved", {}).items()
    for name, loss in result["lost"].items():
        yield name, loss["why"]
    for name in result["without"]:
        yield name, "not run again: it hung or crashed at this hidden size before"
    for contenders in (result.get("contenders", {}), *result.get("passes", {}).values()):
        for name, contender in contenders.items():
            if "left_out" in contender:
                yield name, contender["left_out"]
