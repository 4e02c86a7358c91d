"""Training is hurt in every way that this machine allows; what it ends with is the undisturbed run's.

How often each fault was tried stands at the end of pytest's output. benchmarks/chaos.py does the same
for hundreds of faults.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.endurance import faults as chaos

pytestmark = [pytest.mark.once, pytest.mark.long, pytest.mark.uncached]

ROUNDS = 2  # of all faults


@pytest.mark.timeout(900)
def test_every_fault(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    kinds = chaos.possible()
    runs = chaos.Chaos(tmp_path, kinds, steps=400, seed=0)
    runs.go(ROUNDS * len(kinds))
    assert runs.tried == dict.fromkeys(kinds, ROUNDS)
    for kind in chaos.KINDS:
        record_property(f"fault {kind}", runs.tried[kind] if kind in kinds else "not possible here")


def test_other_runs_differ_in_all_that_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes, flags = [], chaos.FLAGS
    for seed in (0, 1):
        monkeypatch.setattr(chaos, "FLAGS", f"{flags} --seed={seed}")
        victim = chaos.Victim(tmp_path, 4, f"run{seed}")
        victim.start(wait=False)
        assert victim.end()[0] == 0
        outcomes.append(victim.outcome())
    assert all(outcomes[0][part] != outcomes[1][part] for part in outcomes[0])
