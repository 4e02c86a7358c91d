"""Training under every fault that this machine allows ends bit-identical to an undisturbed run.

The end of pytest's output says how often each fault was injected. `python -m
benchmarks.endurance.faults` injects hundreds.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.endurance import faults

pytestmark = [pytest.mark.once, pytest.mark.long, pytest.mark.uncached]

# Rounds of all faults.
ROUNDS = 2


@pytest.mark.timeout(900)
def test_every_fault(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    kinds = faults.possible()
    runs = faults.FaultInjector(tmp_path, kinds, steps=400, seed=0)
    runs.run(ROUNDS * len(kinds))
    assert runs.tried == dict.fromkeys(kinds, ROUNDS)
    for kind in faults.KINDS:
        record_property(f"fault {kind}", runs.tried[kind] if kind in kinds else "not possible here")


def test_other_runs_differ_in_all_that_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes, flags = [], faults.FLAGS
    for seed in (0, 1):
        monkeypatch.setattr(faults, "FLAGS", f"{flags} --seed={seed}")
        training = faults.Training(tmp_path, 4, f"run{seed}")
        training.start(wait=False)
        assert training.end()[0] == 0
        outcomes.append(training.outcome())
    assert all(outcomes[0][part] != outcomes[1][part] for part in outcomes[0])
