"""Bytes that a compiled TPU program moves between HBM and the core, and between chips.

    moved = hbm_bytes(program.computations, program.loops[0].operations)
    sent = collectives(program.computations, program.loops[0].operations, devices=4)

Both are read from the compiled text (`compiler`). The bytes of HBM are an estimate: every array that an
operation reads or writes and that lies in HBM counts once each time the operation runs. A fusion that
takes only a slice of an array reads the slice, and one that writes a slice into an array writes the
slice. A product whose tiles do not fit the core together reads some arrays more than once, which is not
seen; a kernel that does so declares it in its `pl.CostEstimate`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from benchmarks.ahead_of_time import compiler
from benchmarks.ahead_of_time.compiler import Buffer, Operation

Computations = dict[str, list[Operation]]

# Other dtypes end in their number of bits.
_BITS = {"token": 0, "pred": 8, "bf16": 16}


def bytes_of(array: Buffer) -> int:
    """Return the bytes of an array without the padding of its tiles."""
    bits = _BITS.get(array.dtype)
    if bits is None:
        bits = int(re.sub(r"^[a-z]+(\d+).*", r"\1", array.dtype))
    return array.size * bits // 8


def _called(operation: Operation) -> str | None:
    """Return the computation that an operation runs once, here or on another core."""
    if operation.kind in ("call", "call-start"):
        return compiler.attribute(operation, "to_apply")
    return compiler.attribute(operation, "calls")


# --- HBM ----------------------------------------------------------------------------------------

_MOVES_NOTHING = {
    "get-tuple-element",
    "tuple",
    "bitcast",
    "parameter",
    "constant",
    "partition-id",
    "after-all",
    "opt-barrier",
}


def hbm_bytes(computations: Computations, operations: list[Operation]) -> int:
    """Return the bytes read from and written to HBM.

    A loop counts as often as it runs, or once if its trip count is unknown.
    """
    total = 0
    for operation in operations:
        if operation.kind == "while":
            body = computations[str(compiler.attribute(operation, "body"))]
            total += (compiler.trips(computations, operation) or 1) * hbm_bytes(computations, body)
        else:
            total += _moved(computations, operation)
    return total


def _moved(computations: Computations, operation: Operation) -> int:
    kind = operation.kind
    # The "-start" of a pair has moved everything already.
    if kind in _MOVES_NOTHING or kind.endswith("-done"):
        return 0
    if kind in ("copy-start", "slice-start"):
        # The results are source, destination and a flag.
        ends = operation.results[:2]
        return min(map(bytes_of, ends)) * sum(a.in_hbm for a in ends)
    if operation.is_kernel:
        arrays = operation.operands + operation.results
        stated = compiler.estimate(operation, "bytes_accessed")
        if stated is None:
            return _in_hbm(arrays)
        return max(0, stated - sum(bytes_of(a) for a in arrays if not a.in_hbm))
    if kind == "custom-call":
        # Other custom calls are notes to the compiler, and buffers joined in place.
        return 0
    called = _called(operation)
    if kind.endswith("-start"):
        read = _in_hbm(operation.operands)
        if called is not None:
            read = _reads(computations, computations[called], operation)
        return read + _in_hbm(_made(operation))
    if kind == "dynamic-slice":
        return sum(a.in_hbm for a in (operation.operands[0], operation.results[0])) * bytes_of(
            operation.results[0]
        )
    if kind == "dynamic-update-slice":
        update = operation.operands[1]
        return bytes_of(update) * (update.in_hbm + operation.results[0].in_hbm)
    if called is None:
        return _in_hbm(operation.operands) + _in_hbm(operation.results)
    return _fused(computations, computations[called], operation)


def _in_hbm(arrays: list[Buffer]) -> int:
    return sum(bytes_of(a) for a in arrays if a.in_hbm)


def _fused(computations: Computations, inside: list[Operation], call: Operation) -> int:
    read = _reads(computations, inside, call)
    root = inside[-1]
    roots = root.given if root.kind == "tuple" else [root.name]
    by_name = {operation.name: operation for operation in inside}
    written = sum(
        _written(by_name, name) or 0
        for name, array in zip(roots, call.results, strict=False)
        if array.in_hbm
    )
    begun = [a for o in inside if "chain_id=" in o.rest and _starts(inside) for a in o.results]
    there = {a.size for a in call.results if a.in_hbm}
    return read + written + sum(bytes_of(a) for a in begun if a.size in there)


def _reads(computations: Computations, inside: list[Operation], call: Operation) -> int:
    """Return the bytes of HBM that a called computation reads."""
    return sum(
        _read(computations, inside, place)
        for place, array in enumerate(call.operands)
        if array.in_hbm
    )


def _read(computations: Computations, inside: list[Operation], place: int) -> int:
    """Return the bytes that a called computation reads of its operand at this place."""
    (parameter,) = (
        o for o in inside if o.kind == "parameter" and o.rest.partition(")")[0] == str(place)
    )
    whole, total, names = bytes_of(parameter.results[0]), 0, {parameter.name}
    for user in inside:
        places = [n for n, name in enumerate(user.given) if name in names]
        if not places:
            continue
        called = _called(user)
        if user.kind == "bitcast":
            names.add(user.name)
        elif user.kind in ("dynamic-slice", "slice", "gather") and places == [0]:
            total += bytes_of(user.results[0])
        elif (
            user.kind == "tuple"
            or (user.kind == "dynamic-update-slice" and places == [0])
            or (user.kind == "custom-call" and not user.is_kernel)
            or ("chain_id=" in user.rest and not _starts(inside))
        ):
            # Handed on, written in place, or read where its exchange began.
            continue
        elif called is not None:
            total += sum(_read(computations, computations[called], n) for n in places)
        else:
            total += whole
    return min(total, whole)


def _written(by_name: dict[str, Operation], name: str) -> int:
    """Return the bytes of HBM that a fusion writes for one of its results."""
    operation = by_name[name]
    while operation.kind == "bitcast":
        operation = by_name[operation.given[0]]
    if operation.kind == "dynamic-update-slice":
        return bytes_of(operation.operands[1])
    if operation.kind in ("parameter", "custom-call"):
        # The result is handed on.
        return 0
    if "chain_id=" in operation.rest:
        # An exchange counts where it begins.
        return 0
    return bytes_of(operation.results[0])


# --- between chips ------------------------------------------------------------------------------

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Collective(NamedTuple):
    """An exchange between devices.

    kind: one of KINDS.
    bytes: bytes of the whole array that is summed, gathered or scattered; for all-to-all and permute,
      bytes that each device gives. Arrays that the compiler joined count together.
    group: positions in the mesh of the devices that exchange with the first one, which is included.
    turns: number of iterations of the loop around it, 1 outside of loops.
    """

    kind: str
    bytes: int
    group: tuple[int, ...]
    turns: int


def collectives(
    computations: Computations, operations: list[Operation], devices: int, turns: int = 1
) -> Counter[Collective]:
    """Count the collectives among the operations and in called computations, loop bodies once.

    An exchange that the compiler splits, to run something else meanwhile, counts where it begins.
    """
    found: Counter[Collective] = Counter()
    for operation in operations:
        kind = operation.kind.removesuffix("-start")
        called = _called(operation)
        if kind in KINDS:
            if "chain_id=" in operation.rest and not _starts(operations):
                continue
            group = _group(operation.rest, devices)
            if len(group) > 1:
                found[Collective(kind, _whole(kind, operation), group, turns)] += 1
        elif kind == "while":
            body = computations[str(compiler.attribute(operation, "body"))]
            times = turns * (compiler.trips(computations, operation) or 1)
            found += collectives(computations, body, devices, times)
        elif called is not None and not kind.endswith("-done"):
            inside = collectives(computations, computations[called], devices, turns)
            if called.startswith("all-reduce-scatter"):
                # Each device keeps only a slice of the sum.
                inside = Counter({c._replace(kind="reduce-scatter"): n for c, n in inside.items()})
            found += inside
    return found


def _starts(operations: list[Operation]) -> bool:
    return any("AsyncCollectiveStart" in operation.rest for operation in operations)


def _whole(kind: str, operation: Operation) -> int:
    if kind == "all-gather":
        return sum(map(bytes_of, _made(operation)))
    return sum(map(bytes_of, operation.operands))


def _made(operation: Operation) -> list[Buffer]:
    """Return the results, without the operands that a "-start" hands on before them."""
    given = len(operation.operands)
    return operation.results[given if len(operation.results) > given else 0 :]


def _group(text: str, devices: int) -> tuple[int, ...]:
    """Return the devices that the first one exchanges with, from any of XLA's notations for groups.

    Raises:
      ValueError: for another notation.
    """
    if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text):
        return tuple(map(int, found.groups()))
    if re.search(r"replica_groups=\{\}", text):
        return tuple(range(devices))
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return _numbers(found[1])
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        return tuple(_ids(found[2], found[3]).reshape(_numbers(found[1]))[0].tolist())
    ids_in = r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\]" + ids_in + r" \{([^(}]*)\}", text):
        names, sizes = zip(*re.findall(r"'([^']+)'=(\d+)", found[1]), strict=True)
        ids = _ids(found[2] or ",".join(sizes), found[3]).reshape([int(n) for n in sizes])
        axes = [names.index(axis) for axis in re.findall(r"'([^']+)'", found[4])]
        rest = [axis for axis in range(ids.ndim) if axis not in axes]
        return tuple(ids.transpose(rest + axes).reshape(-1, _count(ids, axes))[0].tolist())
    raise ValueError(f"groups of devices in an unknown notation: {text[:200]}")


def _ids(sizes: str, order: str | None) -> np.ndarray:
    """Return device ids: counted along axes of these sizes, whose order is then changed."""
    ids = np.arange(math.prod(_numbers(sizes))).reshape(_numbers(sizes))
    return ids.transpose(_numbers(order)) if order else ids


def _count(ids: np.ndarray, axes: list[int]) -> int:
    return math.prod(ids.shape[axis] for axis in axes)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def as_rows(found: Counter[Collective]) -> list[dict[str, Any]]:
    """Return the collectives as rows of a JSON file, the largest first."""
    rows = [
        {"kind": c.kind, "bytes": c.bytes, "devices": len(c.group), "turns": c.turns, "count": n}
        for c, n in found.items()
    ]
    return sorted(rows, key=lambda row: -row["bytes"] * row["turns"] * row["count"])
