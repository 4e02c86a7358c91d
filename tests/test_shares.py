"""Test that the shares of the test cases, of which CI runs one at each commit, are all of them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTED = "tests/recurrence/kernels/test_scan.py"


def collected(*options: str) -> set[str]:
    """Return the names of the cases that pytest chooses."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-m", "", "--collect-only", TESTED]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {line for line in done.stdout.splitlines() if line.startswith(TESTED)}


@pytest.mark.process
@pytest.mark.once
def test_three_commits_in_turn_run_every_case_and_each_runs_every_test() -> None:
    everything = collected()
    # 7 is the number of a commit; the next two have other remainders.
    shares = [collected("--share", f"{turn}/3") for turn in (7, 8, 9)]
    assert set.union(*shares) == everything
    for share in shares:
        assert len(share) < 0.6 * len(everything)
        assert {name.partition("[")[0] for name in share} == {
            name.partition("[")[0] for name in everything
        }
    every = [collected("--every", f"{turn}/2") for turn in (0, 1)]
    assert every[0] | every[1] == everything
    assert every[0] != every[1]
