"""Runs that earlier versions trained: they load, sample and resume.

The fixture is of the code before the packages were introduced (config.json of format 1), trained by

    python -m jaxrnn.train --data text.txt --workdir run --layers 2 --cell gru --hidden 8 --embed 4
        --steps 20 --batch 4 --seq-len 10 --eval-every 10 --log-every 5 --sample-every 0 --dtype float32
"""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import InputError, charlm, load, sample, train

GOLDEN = Path(__file__).parents[1] / "golden"
RUN = GOLDEN / "run-format-1"
EXPECTED = json.loads((GOLDEN / "run-format-1.json").read_text())
ROUNDING = 1e-5  # six digits were stored, of logits below 1


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(RUN, tmp_path / "run")
    return tmp_path / "run"


def test_logits_are_those_of_the_version_that_trained_it(run: Path) -> None:
    params = load(run)
    tokens = jnp.asarray(params.vocabulary.encode(EXPECTED["text"]), jnp.int32)[:, None]
    _, logits = charlm.forward(params, tokens, charlm.initial_carry(params.config, 1))
    np.testing.assert_allclose(logits[-1, 0], EXPECTED["last_logits"], atol=ROUNDING)


def test_text_is_that_of_the_version_that_trained_it(run: Path) -> None:
    params = load(run)
    assert sample(params, "To", 20, mode="argmax") == EXPECTED["argmax"]
    assert sample(params, "To", 20, seed=3) == EXPECTED["seed 3"]


@pytest.mark.slow
def test_training_resumes_and_writes_the_format_of_today(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    shutil.copy(GOLDEN / "run-format-1.txt", "text.txt")
    flags = "--layers 2 --cell gru --hidden-size 8 --embedding-size 4 --steps 20 --batch 4"
    flags += " --seq-len 10 --eval-every 10 --log-every 5 --sample-every 0 --dtype float32"
    command = ["--data", "text.txt", "--workdir", "run", *flags.split()]
    assert train.main([*command, "--steps", "25"]) == 0
    written = json.loads((run / "config.json").read_text())
    assert written["format"] == 2 and written["training"]["model"]["hidden_size"] == 8
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [5, 10, 15, 20, 25]


def test_a_newer_format_is_refused(run: Path) -> None:
    described = json.loads((run / "config.json").read_text()) | {"format": 3}
    (run / "config.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"written by a newer jaxrnn: .* has format 3"):
        load(run)
