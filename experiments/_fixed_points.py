"""The search for fixed points and slow points of a network, after Sussillo and Barak (2013).

q(s) = |F(s) - s|^2 / 2        F: one step of the network; q is 0 at a fixed point
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# Steps of a search.
ITERATIONS = 50
# Largest q of a fixed point and of a slow point, and the distance below which two points are the same.
FIXED = 1e-10
SLOW = 1e-4
SAME = 0.1


class Points(NamedTuple):
    """Points of the state space, sorted by q.

    places: [P, N].
    speeds: q at each [P].
    jacobians: [P, N, N].
    """

    places: Any
    speeds: Any
    jacobians: Any


def minimise(evaluate: Callable[[Any], tuple[Any, Any]], starts: Any) -> Points:
    """Return the minima of q that Levenberg and Marquardt's method reaches from `starts` [P, N].

    Args:
      evaluate: function that returns F(s) - s [P, N] and dF/ds [P, N, N] for states [P, N].
      starts: the starting points.
    """
    places = np.asarray(starts, np.float64)
    identity = np.eye(places.shape[1])
    damping = np.full(len(places), 1e-2)
    gaps, jacobians = evaluate(places)
    speeds = (gaps**2).sum(1) / 2
    for _ in range(ITERATIONS):
        slopes = jacobians - identity
        transposed = slopes.swapaxes(1, 2)
        curvature = transposed @ slopes + damping[:, None, None] * identity
        moves = np.linalg.solve(curvature, transposed @ gaps[..., None])[..., 0]
        tried = places - moves
        gaps_there, jacobians_there = evaluate(tried)
        speeds_there = (gaps_there**2).sum(1) / 2
        # A step that does not reduce q is not taken, and the next one is shorter.
        better = speeds_there < speeds
        places[better], gaps[better] = tried[better], gaps_there[better]
        jacobians[better], speeds[better] = jacobians_there[better], speeds_there[better]
        damping = np.clip(np.where(better, damping / 4, damping * 4), 1e-12, 1e6)
    order = np.argsort(speeds, kind="stable")
    return Points(places[order], speeds[order], jacobians[order])


def distinct(points: Points) -> Points:
    """Return the points without those that are near to one of smaller q."""
    kept: list[int] = []
    for index, place in enumerate(points.places):
        if all(np.linalg.norm(place - points.places[other]) > SAME for other in kept):
            kept.append(index)
    return Points(*(array[kept] for array in points))


class Found(NamedTuple):
    """The fixed points of a network.

    points: all that differ.
    unstable: number of unstable directions of each [P].
    largest: largest absolute eigenvalue of each [P].
    slow: number of slow points.
    """

    points: Points
    unstable: Any
    largest: Any
    slow: int


def search(evaluate: Callable[[Any], tuple[Any, Any]], starts: Any) -> Found:
    """Return the fixed points that are reached from `starts` [P, N]; `evaluate` as for `minimise`."""
    points = distinct(minimise(evaluate, starts))
    fixed = points.speeds < FIXED
    slow = int((points.speeds < SLOW).sum() - fixed.sum())
    points = Points(*(array[fixed] for array in points))
    sizes = np.abs(np.linalg.eigvals(points.jacobians))
    return Found(points, (sizes >= 1).sum(1), sizes.max(1), slow)
