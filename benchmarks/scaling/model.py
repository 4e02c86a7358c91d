"""A model of the time that a training step takes on TPUs, from its compiled program.

    terms = predict(CHIPS["v5e"], work, exchanges)
    terms.step, terms.floor, terms.limit    # seconds, seconds, the name of the largest term

No result of the model is a measurement.

The model divides a step into three parts that follow each other:

    recurrence     kernels, or XLA's loops over time, which run once a step of time. The longest of
                   cycles at the chip's clock, operations at the peak rate, and bytes at HBM's rate
    the rest       products and all else: the longer of operations and bytes ("compute" or "HBM")
    exchanges      for each collective its bytes at the rate of the links, and its delay

`step` assumes that nothing overlaps, which is pessimistic; `floor` assumes that everything does, and is
the longest term. README.md lists what neither includes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.ahead_of_time.traffic import Collective


class Chip(NamedTuple):
    """Published numbers of one chip.

    devices: number of JAX devices of the chip.
    flops: bfloat16 operations per second.
    hbm: bytes per second between HBM and the cores.
    link: bytes per second in one direction of each of the two links along an axis of the slice.
    axes: axes of the torus of a whole pod.
    operations: bfloat16 operations per cycle of all matrix units; `flops` divided by it is the clock.
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
        """Cycles per second, as the peak rate implies."""
        return self.flops / self.operations

    def wraps(self, shape: Sequence[int]) -> tuple[bool, ...]:
        """Return for each axis of a slice whether its ends are linked to form a ring."""
        if self.axes == 2:
            return tuple(size == 16 for size in shape)
        return tuple(all(size % 4 == 0 for size in shape) for _ in shape)


# flops, hbm, capacity and the links' total (both directions of all links together) are from
#   https://docs.cloud.google.com/tpu/docs/v5e, /v5p-training and /tpu7x
# Slices with rings: https://jax-ml.github.io/scaling-book/tpus (v5e along axes of 16, the others in
# whole cubes of 4 x 4 x 4). Matrix units: v5e and v5p have four of 128 x 128 in each core (the first
# two pages). Those of tpu7x are not published. The compiler assumes four of 256 x 256 in each of two
# cores: it counts 422,142 operations per cycle and core in one large product, more than three units
# could do.
CHIPS = {
    "v5e": Chip(1, 197e12, 819e9, 400e9 / 8, 2, 4 * 2 * 128**2, 16e9),
    "v5p": Chip(1, 459e12, 2765e9, 1200e9 / 12, 3, 2 * 4 * 2 * 128**2, 95 * 2**30),
    "tpu7x": Chip(2, 2307e12, 7380e9, 1200e9 / 12, 3, 2 * 4 * 2 * 256**2, 192 * 2**30),
}
# Seconds of a hop, and of every collective besides its hops. From
# https://jax-ml.github.io/scaling-book/sharding: about 1 us a hop, and a small all-gather of three
# hops on a v5e takes "closer to 8 us" in a profile.
HOP, COLLECTIVE = 1e-6, 5e-6


class Work(NamedTuple):
    """Work of one device in one training step, without exchanges.

    recurrent_flops, recurrent_bytes, recurrent_cycles: of everything that runs once a step of time.
    flops, bytes: of the rest.
    """

    recurrent_flops: float
    recurrent_bytes: float
    recurrent_cycles: float
    flops: float
    bytes: float


class Span(NamedTuple):
    """Extent of a group of devices in a slice.

    sizes: chips along each axis of the slice.
    rings: for each axis, whether its two ends are linked.
    share: number of devices of one chip in the group.
    """

    sizes: tuple[int, ...]
    rings: tuple[bool, ...]
    share: int = 1

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.sizes)


class Terms(NamedTuple):
    """Seconds of one step by term.

    recurrence: the recurrence.
    compute, memory: operations and bytes of the rest, of which the longer counts.
    links, delay: bytes and delay of the exchanges.
    """

    recurrence: float
    compute: float
    memory: float
    links: float
    delay: float

    @property
    def step(self) -> float:
        """Seconds if nothing overlaps."""
        return self.recurrence + max(self.compute, self.memory) + self.links + self.delay

    @property
    def floor(self) -> float:
        """Seconds if everything overlaps."""
        return max(self.recurrence, self.compute, self.memory, self.links, self.delay)

    @property
    def limit(self) -> str:
        """Name of the largest term."""
        return NAMES[self.index(max(self))]


NAMES = ("recurrence", "compute", "HBM", "links", "delay")


def span(
    chip: Chip, places: Sequence[tuple[int, ...]], shape: Sequence[int], cores: int = 1
) -> Span:
    """Return the span of a group.

    Args:
      chip: kind of chip.
      places: coordinates of the chips of its devices.
      shape: chips along each axis of the slice.
      cores: number of devices of one chip in the group.
    """
    sizes = tuple(len({place[axis] for place in places}) for axis in range(len(shape)))
    ends = zip(chip.wraps(shape), sizes, shape, strict=True)
    rings = tuple(linked and size == whole for linked, size, whole in ends)
    return Span(sizes, rings, cores)


def sent(collective: Collective, span: Span) -> float:
    """Return the bytes that leave each chip in one iteration, including those that it passes on."""
    n = span.chips
    if n == 1:
        return 0.0
    part = (n - 1) / n
    factor = {
        # A reduce-scatter, then an all-gather.
        "all-reduce": 2 * part,
        "all-gather": part,
        "reduce-scatter": part,
        # Each part travels a quarter of the ring.
        "all-to-all": span.share * n / 4,
        "collective-permute": span.share,
    }[collective.kind]
    return factor * collective.bytes


def exchange(chip: Chip, collective: Collective, span: Span) -> tuple[float, float]:
    """Return the seconds of a collective's bytes and of its delay, over all iterations of its loop.

    Along an axis that is a ring a chip sends in both directions at once; otherwise the link in the
    middle of the row carries everything in one direction. Several axes share the bytes. If the cores
    of a chip are in separate groups, the groups share the chip's links.
    """
    along = [(n, ring) for n, ring in zip(span.sizes, span.rings, strict=True) if n > 1]
    rate = chip.link * sum(2 if ring else 1 for _, ring in along)
    hops = sum(n // 2 if ring else n - 1 for n, ring in along)
    hops *= 2 if collective.kind == "all-reduce" else 1
    groups = chip.devices / span.share
    links = groups * sent(collective, span) / rate if along else 0.0
    return collective.turns * links, collective.turns * (COLLECTIVE + hops * HOP)


def recurrence(chip: Chip, work: Work) -> dict[str, float]:
    """Return the seconds that cycles, operations and bytes of the recurrence would take alone."""
    return {
        "cycles": work.recurrent_cycles / chip.clock,
        "compute": work.recurrent_flops * chip.devices / chip.flops,
        "HBM": work.recurrent_bytes * chip.devices / chip.hbm,
    }


def predict(chip: Chip, work: Work, exchanges: Sequence[tuple[float, float]]) -> Terms:
    """Return the seconds of a step.

    Args:
      chip: kind of chip.
      work: work of one of its devices, which share the chip's rates evenly.
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
    """Return the rate of a chip among others, divided by the rate of a chip alone.

    characters: characters of one step on all chips.
    alone: characters per second of one chip alone.
    """
    return characters / seconds / chips / alone
