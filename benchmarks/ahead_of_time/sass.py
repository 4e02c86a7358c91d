"""Instructions of one step of time in a compiled kernel, counted in its machine code ("SASS").

The code is text as NVIDIA's nvdisasm writes it, with a label before each target of a jump:

    .L_x_7:
       -:-:1:Y:01        /*21f0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [UR15], R8
       -:-:-:Y:05        /*40d0*/               @P2 BRA `(.L_x_7)

A loop is what lies between a label and a jump back to it. The loop over time is the longest one before
the kernel's last EXIT. Behind that, ptxas places code that jumps back although it ends no step: waits
that do not succeed at once, and the start of another turn in a kernel with more rows than fit at once.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# A label, or an instruction without its predicate.
_LINE = re.compile(r"^(\.\w+):|/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z].*)", re.MULTILINE)
_TARGET = re.compile(r"BRA\b.*\((\.\w+)\)")


class Counts(NamedTuple):
    """Instructions in the loop over time; a kernel without loops has none.

    Each instruction counts once, also where its predicate may be false or a loop inside of the loop over
    time repeats it. All warps of a CTA execute the same code, so these are numbers per warp. One thread
    alone issues the loads and stores by TMA. Compiling a kernel again may change the number of all
    instructions a little: 496 and 500 were seen.

    instructions: instructions of all kinds.
    hgmma: products of a warpgroup, HGMMA.
    inner_hgmma: those of them in a loop inside of the loop over time, over chunks of a product.
    mufu: special functions such as exponentials and reciprocals, MUFU.
    bar_sync: barriers of a block's warps, BAR.SYNC.
    utmaldg: loads by TMA, UTMALDG.
    utmastg: stores by TMA, UTMASTG.
    """

    instructions: int
    hgmma: int
    inner_hgmma: int
    mufu: int
    bar_sync: int
    utmaldg: int
    utmastg: int


def counts(text: str) -> Counts:
    """Count the instructions of one step of time in nvdisasm's text of one kernel."""
    labels: dict[str, int] = {}
    code: list[str] = []
    for label, instruction in _LINE.findall(text):
        if label:
            labels[label] = len(code)
        else:
            code.append(instruction)
    loops = _loops(labels, code)
    step = max(loops, key=len, default=range(0))
    inner = [loop for loop in loops if step.start < loop.start and loop.stop < step.stop]

    def number(name: str, places: range | set[int] = step) -> int:
        return sum(code[place].startswith(name) for place in places)

    return Counts(
        instructions=len(step),
        hgmma=number("HGMMA"),
        inner_hgmma=number("HGMMA", set().union(*inner)),
        mufu=number("MUFU"),
        bar_sync=number("BAR.SYNC"),
        utmaldg=number("UTMALDG"),
        utmastg=number("UTMASTG"),
    )


def _loops(labels: dict[str, int], code: list[str]) -> list[range]:
    """Return the places of each loop's instructions."""
    exits = [place for place, instruction in enumerate(code) if instruction.startswith("EXIT")]
    loops = []
    for place, instruction in enumerate(code[: exits[-1] if exits else None]):
        target = _TARGET.match(instruction)
        if target and labels[target[1]] <= place:
            loops.append(range(labels[target[1]], place + 1))
    return loops
