"""`benchmarks/ahead_of_time/sass.py` finds the loop over time in a text like that of nvdisasm."""

from __future__ import annotations

import re

from benchmarks.ahead_of_time.sass import Counts, counts

# A loop over time with a wait inside, a loop of products and a wait behind the end, in one of turns.
TURNS = """
.text.some_mosaic_gpu_kernel:
    S2R R18, SR_TID.X
.L_x_0:
    HGMMA.64x8x16.F32.BF16 R28, gdesc[UR8], RZ, !UPT
    UTMALDG.4D [UR8], [UR4]
.L_x_1:
    SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [UR15], R8
    @!P2 BRA `(.L_x_9)
.L_x_2:
    LDG.E.STRONG.GPU R2, [R4]
    @P1 BRA `(.L_x_2)
.L_x_3:
    @UP1 UTMALDG.5D [UR40], [UR56]
    HGMMA.64x8x16.F32.BF16 R28, gdesc[UR44], R28
    HGMMA.64x8x16.F32.BF16 R28, gdesc[UR16], R28, gsb0
    @P3 BRA `(.L_x_3)
    HGMMA.64x8x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT
    MUFU.EX2 R28, R28
    @P4 MUFU.RCP R28, R28
    @P4 BRA `(.L_x_4)
    BAR.SYNC.DEFER_BLOCKING R15, 0x80
    BAR.ARV R15, 0x80
.L_x_4:
    @UP1 UTMASTG.5D [UR48], [UR4]
    @P2 BRA `(.L_x_1)
    UTMASTG.4D [UR8], [UR4]
    @!P0 EXIT
    BRA `(.L_x_0)
.L_x_9:
    @!P2 NANOSLEEP.SYNCS 0x989680
    @!P2 BRA `(.L_x_9)
    BRA `(.L_x_2)
.L_x_10:
    BRA `(.L_x_10)
"""


def disassembly(code: str) -> str:
    """Return the code with control codes and addresses."""
    return re.sub(r"^ +", "   -:-:1:Y:01        /*0a40*/               ", code, flags=re.MULTILINE)


def test_a_step_is_the_longest_loop_before_the_last_exit() -> None:
    """Neither a turn nor what follows a wait is a step; a wait is no loop of products."""
    assert counts(disassembly(TURNS)) == Counts(
        instructions=16,
        hgmma=3,
        inner_hgmma=2,
        mufu=2,
        bar_sync=1,
        utmaldg=1,
        utmastg=1,
    )


def test_without_loops_nothing_is_counted() -> None:
    """The jump of a kernel's last instruction to itself is no loop."""
    straight = "    MUFU.EX2 R28, R28\n    EXIT\n.L_x_10:\n    BRA `(.L_x_10)\n"
    assert counts(disassembly(straight)) == Counts(*[0] * len(Counts._fields))
