"""Test that the shares of the test cases, of which CI runs one at each commit, are all of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTED = "tests/recurrence/kernels/test_scan.py"
RARE = "tests/recurrence/kernels/test_native_bfloat16.py"

COLLECT = """
import json, sys, pytest

found = []

class Collector:
    def pytest_collection_finish(self, session):
        found.append([item.nodeid for item in session.items])

# jaxtyping checks a package only if no earlier run has imported it, so its option is left out.
own = ["-o", "addopts=--import-mode=importlib", "--collect-only"]
for options in json.loads(sys.argv[2]):
    assert pytest.main([*own, *options], plugins=[Collector()]) == 0
with open(sys.argv[1], "w") as file:
    json.dump(found, file)
"""


def collected(folder: Path, *choices: list[str]) -> list[set[str]]:
    """Return the names of the cases that pytest chooses with each list of options.

    One process collects them all: most of the time is that of its imports.
    """
    found = folder / "found.json"
    command = [sys.executable, "-c", COLLECT, str(found), json.dumps(choices)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return [set(names) for names in json.loads(found.read_text())]


def functions(names: set[str]) -> set[str]:
    return {name.partition("[")[0] for name in names}


@pytest.mark.process
@pytest.mark.once
def test_commits_in_turn_run_every_case_and_each_runs_every_test(tmp_path: Path) -> None:
    whole, fast, slow = ["-m", "", TESTED], ["-m", "not slow", TESTED], ["-m", "slow", TESTED]
    rare = ["-m", "rare", RARE]
    # 7 is the number of a commit; the next two have other remainders.
    turns = [f"{turn}/3" for turn in (7, 8, 9)]
    everything, all_fast, all_slow, all_rare, *chosen = collected(
        tmp_path,
        *(whole, fast, slow, rare),
        *([*whole, "--share", turn] for turn in turns),
        *([*fast, "--fast-share", turn] for turn in turns),
        *([*slow, "--fast-share", turns[0]], [*fast, "--share", turns[0]]),
        *([*rare, "--share", turn] for turn in turns),
        *([*whole, "--every", f"{turn}/2"] for turn in (0, 1)),
    )
    shares, fast_shares, unchanged = chosen[:3], chosen[3:6], chosen[6:8]
    rare_shares, every = chosen[8:11], chosen[11:]
    assert set.union(*shares) == everything
    for share in shares:
        assert len(share) < 0.6 * len(everything)
        assert functions(share) == functions(everything)
    assert set.union(*fast_shares) == all_fast
    assert all(functions(share) == functions(all_fast) for share in fast_shares)
    assert unchanged == [all_slow, all_fast]
    assert set.union(*rare_shares) == all_rare
    assert all(len(share) <= len(all_rare) / 3 + 1 for share in rare_shares)
    assert every[0] | every[1] == everything
    assert every[0] != every[1]
