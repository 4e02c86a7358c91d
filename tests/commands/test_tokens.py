"""Test trainings on tokens of several characters, `--tokens`."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxrnn import generate, load, prepare, sample, train
from jaxrnn.data.corpus import make_corpus
from tests.support.runs import TEXT, flags

pytestmark = [pytest.mark.usefixtures("without_pictures"), pytest.mark.once]

# Atoms of SMILES. Each of these lines has 4 tokens and a line break.
ATOMS = r"\[[^]]+\]|Br|Cl"
MOLECULES = "C[Na+]ClN\nBrC(C\n" * 40


@pytest.mark.slow
def test_tokens_of_several_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.smi").write_text(MOLECULES)
    changes = dict(sample_every=4, sample_prime="[Na+]")
    assert train.main(flags("text.smi", "run", "--tokens", ATOMS, **changes)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "text: 400 tokens, 7 different; the last 40 are for validation"
    assert lines[1].startswith("preset small for 360 tokens: ")
    assert any(line.startswith("step 8/8 ") and line.endswith(" tokens/s") for line in lines)
    params = load("run")
    assert params.vocabulary == make_corpus(MOLECULES, pattern=ATOMS).vocabulary
    # The command in the last line works, and its length counts tokens.
    arguments = shlex.split(lines[-1].removeprefix("done. Now: python -m jaxrnn.generate "))
    assert arguments == ["run", "--prime", "C[Na+]ClN"]
    assert generate.main([*arguments, "--length", "30"]) == 0
    assert capsys.readouterr().out == sample(params, "C[Na+]ClN", 30)
    written = Path("run/samples.txt").read_bytes().decode()
    assert written.count("--- step") == 2 and "\n[Na+]" in written
    # A resumed run keeps its tokens.
    assert train.main(flags("text.smi", "run", "--tokens", ATOMS, **changes, steps=9)) == 0


@pytest.mark.slow
def test_the_entropy_of_the_play_in_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxrnn.data import play

    short = play.write(3000)
    monkeypatch.setattr(play, "write", lambda: short)
    assert train.main(flags("play", tmp_path, "--tokens", r"\w+", steps=2)) == 0
    floor = make_corpus(short.text, short.nats, pattern=r"\w+").floor
    assert f"on them than {floor:.4f} nats per token\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tokens", "b+", "--bytes"], "give --bytes or --tokens, not both"),
        (["--tokens", ""], "--tokens is empty"),
        (["--tokens", "b\udcff"], "--tokens is not UTF-8; give a regular expression in UTF-8"),
        (["--tokens", "b*"], "--tokens 'b*' matches the empty string"),
        (["--tokens", "(?=b)"], "--tokens '(?=b)' matches the empty string"),
        (["--tokens", "(b"], "--tokens '(b' is not a regular expression: missing ), unterminated"),
        (["--tokens", "b+", "--sample-prime", "bb"], "tokens that the model has never seen: 'bb'"),
    ],
    ids=lambda value: " ".join(map(ascii, value)) if isinstance(value, list) else "",
)
def test_tokens_that_cannot_be(
    more: list[str], message: str, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    assert message in refusal(train.main, flags(tmp_path / "text.txt", tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_tokens_of_a_prepared_text(tmp_path: Path, refusal: Callable[..., str]) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    prepared = str(tmp_path / "prepared")
    assert prepare.main(["--data", str(tmp_path / "text.txt"), "--output", prepared]) == 0
    message = refusal(train.main, flags(prepared, tmp_path / "run", "--tokens", "b+"))
    assert message.startswith(f"--tokens: {prepared} is a prepared text, ")
