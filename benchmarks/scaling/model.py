"""The time that a training step should take on TPUs, from what its compiled program does.

    terms = predict(CHIPS["v5e"], work, exchanges)
    terms.step, terms.floor, terms.limit    # seconds, seconds, the name of what takes the most of them

No number that comes out of it is a measurement.

A step is thought of as three stretches, one after the other:

    recurrence     what runs once a step of time: kernels, or XLA's loops over time. The longest of: its
                   cycles at the chip's clock, its operations at the peak rate, its bytes at HBM's rate
    the rest       products and all else outside: the longer of operations and bytes ("compute" or "HBM")
    exchange       each collective by itself: bytes at the links' rate, and its delay

Nothing overlaps in `step`, which is the pessimistic reading; in `floor` everything does: the longest of
all. What neither knows is in benchmarks/README.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.ahead_of_time.traffic import Collective


class Chip(NamedTuple):
    """What is published of one chip.

    devices: JAX devices that it shows itself as.
    flops: bfloat16 operations a second.
    hbm: bytes a second.
    link: bytes a second, one way, of each of its two links along an axis of the slice.
    axes: of the torus that a whole pod is.
    operations: bfloat16 operations a cycle, of all its matrix units, which with `flops` gives the clock.
    capacity: bytes of HBM.
    """

    devices: int
    flops: float
    hbm: float
    link: float
    axes: int
    operations: int
    capacity: float

    @property
    def clock(self) -> float:
        """Cycles a second, as the peak rate implies."""
        return self.flops / self.operations

    def wraps(self, shape: Sequence[int]) -> tuple[bool, ...]:
        """For each axis of a slice, whether its ends are linked to a ring."""
        if self.axes == 2:
            return tuple(size == 16 for size in shape)
        return tuple(all(size % 4 == 0 for size in shape) for _ in shape)


# flops, hbm, capacity and the links' total, both ways of all together, from
#   https://docs.cloud.google.com/tpu/docs/v5e, /v5p-training and /tpu7x
# Which slices have rings: https://jax-ml.github.io/scaling-book/tpus (v5e along axes of 16, the others
# in whole cubes of 4 x 4 x 4). Units: v5e and v5p have four of 128 x 128 in each core (the first two
# pages). A tpu7x' are not published: four of 256 x 256 in each of two cores is what the compiler counts
# with, 422,142 operations a cycle and core in one large product, more than three could do.
CHIPS = {
    "v5e": Chip(1, 197e12, 819e9, 400e9 / 8, 2, 4 * 2 * 128**2, 16e9),
    "v5p": Chip(1, 459e12, 2765e9, 1200e9 / 12, 3, 2 * 4 * 2 * 128**2, 95 * 2**30),
    "tpu7x": Chip(2, 2307e12, 7380e9, 1200e9 / 12, 3, 2 * 4 * 2 * 256**2, 192 * 2**30),
}
# https://jax-ml.github.io/scaling-book/sharding: about 1 us a hop, and a small all-gather of three hops
# on a v5e "closer to 8 us" in a profile: what the hops leave of it is taken for every collective
HOP, COLLECTIVE = 1e-6, 5e-6


class Work(NamedTuple):
    """What one device does in one step of training, outside of exchanges.

    recurrent_flops, recurrent_bytes, recurrent_cycles: of what runs once a step of time.
    flops, bytes: of the rest.
    """

    recurrent_flops: float
    recurrent_bytes: float
    recurrent_cycles: float
    flops: float
    bytes: float


class Span(NamedTuple):
    """Where the devices of a group lie.

    sizes: chips along each axis of the slice.
    rings: whether the two ends of the axis are linked.
    share: devices of one chip that are in it.
    """

    sizes: tuple[int, ...]
    rings: tuple[bool, ...]
    share: int = 1

    @property
    def chips(self) -> int:
        return math.prod(self.sizes)


class Terms(NamedTuple):
    """Seconds of one step: its recurrence, then operations and bytes of the rest, of which the longer
    counts, and the exchanges' bytes and delay."""

    recurrence: float
    compute: float
    memory: float
    links: float
    delay: float

    @property
    def step(self) -> float:
        """Where nothing overlaps."""
        return self.recurrence + max(self.compute, self.memory) + self.links + self.delay

    @property
    def floor(self) -> float:
        """Where everything does."""
        return max(self.recurrence, self.compute, self.memory, self.links, self.delay)

    @property
    def limit(self) -> str:
        """The name of the largest."""
        return NAMES[self.index(max(self))]


NAMES = ("recurrence", "compute", "HBM", "links", "delay")


def span(
    chip: Chip, places: Sequence[tuple[int, ...]], shape: Sequence[int], cores: int = 1
) -> Span:
    """The span of a group.

    Args:
      chip: of which kind.
      places: the coordinates of its devices' chips.
      shape: of the slice, chips along each axis.
      cores: devices of one chip among them.
    """
    sizes = tuple(len({place[axis] for place in places}) for axis in range(len(shape)))
    ends = zip(chip.wraps(shape), sizes, shape, strict=True)
    rings = tuple(linked and size == whole for linked, size, whole in ends)
    return Span(sizes, rings, cores)


def sent(collective: Collective, span: Span) -> float:
    """Bytes that leave each chip in one turn, those that it only passes on included."""
    n = span.chips
    if n == 1:
        return 0.0
    part = (n - 1) / n
    factor = {
        "all-reduce": 2 * part,  # a reduce-scatter, then an all-gather
        "all-gather": part,
        "reduce-scatter": part,
        "all-to-all": span.share * n / 4,  # each part goes a quarter of the ring
        "collective-permute": span.share,
    }[collective.kind]
    return factor * collective.bytes


def exchange(chip: Chip, collective: Collective, span: Span) -> tuple[float, float]:
    """Seconds that a collective's bytes and its delay take, all turns of its loop together.

    Along an axis that is a ring a chip sends both ways at once, else the link at the middle of the row
    carries all one way. Several axes share the bytes. Where the cores of a chip are in groups of their
    own, these share its links.
    """
    along = [(n, ring) for n, ring in zip(span.sizes, span.rings, strict=True) if n > 1]
    rate = chip.link * sum(2 if ring else 1 for _, ring in along)
    hops = sum(n // 2 if ring else n - 1 for n, ring in along)
    hops *= 2 if collective.kind == "all-reduce" else 1
    groups = chip.devices / span.share
    links = groups * sent(collective, span) / rate if along else 0.0
    return collective.turns * links, collective.turns * (COLLECTIVE + hops * HOP)


def recurrence(chip: Chip, work: Work) -> dict[str, float]:
    """Seconds that each of what the recurrence needs would take alone, by its name."""
    return {
        "cycles": work.recurrent_cycles / chip.clock,
        "compute": work.recurrent_flops * chip.devices / chip.flops,
        "HBM": work.recurrent_bytes * chip.devices / chip.hbm,
    }


def predict(chip: Chip, work: Work, exchanges: Sequence[tuple[float, float]]) -> Terms:
    """Seconds of a step.

    Args:
      chip: of which kind.
      work: of one of its devices; they share the chip's rates evenly.
      exchanges: `exchange` of every collective.
    """
    flops, hbm = chip.flops / chip.devices, chip.hbm / chip.devices
    return Terms(
        max(recurrence(chip, work).values()),
        work.flops / flops,
        work.bytes / hbm,
        sum(links for links, _ in exchanges),
        sum(delay for _, delay in exchanges),
    )


def efficiency(characters: float, seconds: float, chips: int, alone: float) -> float:
    """Of a chip among others: what it does in a second, by what one chip alone does.

    characters: of one step, of all chips. alone: characters a second of one chip by itself.
    """
    return characters / seconds / chips / alone
