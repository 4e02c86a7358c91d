"""Training is hurt in every way that this machine allows; what it ends with is the undisturbed run's.

How often each fault was tried stands at the end of pytest's output. benchmarks/chaos.py does the same
for hundreds of faults.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import chaos

ROUNDS = 2  # of all faults


@pytest.mark.timeout(900)
def test_every_fault(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    kinds = chaos.possible()
    runs = chaos.Chaos(tmp_path, kinds, steps=400, seed=0)
    runs.go(ROUNDS * len(kinds))
    assert runs.tried == dict.fromkeys(kinds, ROUNDS)
    for kind in chaos.KINDS:
        record_property(f"fault {kind}", runs.tried[kind] if kind in kinds else "not possible here")


def test_a_broken_promise_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What chaos.py compares differs where a run's arrays do."""
    monkeypatch.setattr(chaos, "FLAGS", chaos.FLAGS.replace("--eval-every 8", "--eval-every 4"))
    runs = []
    for seed in (0, 1):
        monkeypatch.setattr(chaos, "FLAGS", f"{chaos.FLAGS} --seed={seed}")
        victim = chaos.Victim(tmp_path, 4, f"run{seed}")
        victim.start(wait=False)
        assert victim.end()[0] == 0
        runs.append(victim.outcome())
    assert all(runs[0][part] != runs[1][part] for part in runs[0])
