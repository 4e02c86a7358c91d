"""Test `jaxrnn NAME`, which is `python -m jaxrnn.NAME`: the list, the help without JAX, completion."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import jaxrnn
from jaxrnn import __main__ as entry
from jaxrnn import generate
from jaxrnn.commands import running
from jaxrnn.commands.export_options import ExportOptions
from jaxrnn.commands.running import COMMANDS

ROOT = Path(__file__).parents[2]
# Packages whose import takes longer than all the rest of `--help`.
HEAVY = {"flax", "jax", "jaxlib", "matplotlib", "optax", "orbax", "tensorstore"}


def shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return what a command that succeeds prints."""
    capsys.readouterr()
    try:
        status = entry.main(arguments)
    except SystemExit as end:  # tyro's, after --help
        status = int(end.code or 0)
    out, err = capsys.readouterr()
    assert status == 0 and err == ""
    return out


# --- the list of commands ---


def test_every_command_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    listed = shown([], capsys)
    assert listed == shown(["--help"], capsys) == shown(["-h"], capsys)
    lines = dict(re.findall(r"^  (\w+) +(\S.*)$", listed, re.M))
    assert lines == COMMANDS
    assert "jaxrnn COMMAND --help" in listed
    for name in COMMANDS:
        assert (ROOT / "jaxrnn" / f"{name}.py").is_file()


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(["--version"], capsys) == f"jaxrnn {jaxrnn.__version__}\n"


@pytest.mark.parametrize(
    ("name", "shown_as"),
    [
        ("trian", "trian (did you mean train?)"),
        ("up\n", "$'up\\x0a'"),
        ("--data", "--data"),
        ("", "''"),
    ],
)
def test_an_unknown_command(name: str, shown_as: str, refusal: Callable[..., str]) -> None:
    message = refusal(entry.main, [name, "--data", "text"])
    assert message == f"unknown command {shown_as}; jaxrnn --help lists all commands"


@pytest.mark.parametrize(
    ("advice", "ending"), [("lower --parts", "(9 bytes); lower --parts"), ("", "(9 bytes)")]
)
def test_memory_that_runs_out(advice: str, ending: str, refusal: Callable[..., str]) -> None:
    def main(_: list[str]) -> int:
        def work(_: ExportOptions) -> int:
            raise MemoryError("9 bytes\nsecond line")

        options = ExportOptions(Path("run"))
        return running.run(ExportOptions, lambda: options, work, running.out_of_memory(advice))

    assert refusal(main, [], 1) == f"the memory ran out {ending}"
    assert running.out_of_memory(advice)(ValueError("another error")) is None


def test_the_console_script_is_the_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["jaxrnn"].partition(":")
    assert getattr(importlib.import_module(module), name) is entry.start


# --- one command ---


@pytest.mark.parametrize("name", COMMANDS)
def test_help_differs_only_in_the_name_of_the_program(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    by_name = shown([name, "--help"], capsys)
    assert by_name.startswith(f"usage: jaxrnn {name} ")
    with pytest.raises(SystemExit):
        importlib.import_module(f"jaxrnn.{name}").main(["--help"])
    by_module = capsys.readouterr().out
    assert by_module.startswith(f"usage: python -m jaxrnn.{name} ")
    # The usage is broken into lines, which the length of the name changes.
    assert by_name.partition("\n\n")[2] == by_module.partition("\n\n")[2]


def test_a_command_by_its_name_does_the_same(
    place: Path, capsys: pytest.CaptureFixture[str], refusal: Callable[..., str]
) -> None:
    arguments = [str(place / "run"), "--length", "20", "--seed", "3"]
    text = shown(["generate", *arguments], capsys)
    assert len(text) == 21
    assert generate.main(arguments) == 0
    assert capsys.readouterr().out == text
    message = refusal(entry.main, ["generate", str(place / "run"), "--top-k", "0"])
    assert message == "--top-k must be at least 1, not 0"


HELP = """
import contextlib, io, sys
from jaxrnn import __main__
for arguments in sys.argv[1].split(","):
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        __main__.main(arguments.split())
    assert "usage: jaxrnn" in printed.getvalue() or arguments in ("--version", "completion bash")
    print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.process
def test_help_does_not_import_jax() -> None:
    """Importing JAX takes longer than the rest of `--help`."""
    arguments = ["--help", "--version", *(f"{name} --help" for name in COMMANDS), "completion bash"]
    done = subprocess.run(
        [sys.executable, "-c", HELP, ",".join(arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(arguments)
    for argument, line in zip(arguments, lines, strict=True):
        assert not HEAVY & set(line.split()), argument


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--version"], 0), (["trian"], 2), (["generate", "nowhere"], 2), (["train", "--help"], 0)],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_exit_status_of_the_program(arguments: list[str], status: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jaxrnn", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    assert (done.stdout == "") == (status != 0) and len(done.stderr.splitlines()) == status // 2


# --- completion ---


def flags_of(name: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Return the flags that `--help` lists."""
    text = shown([name, "--help"], capsys)
    return {"-h", *re.findall(r"(?<![\w`-])--[a-z][\w-]*(?=[, ]|$)", text, re.M)}


COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_jaxrnn
printf "%s\\n" "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., set[str]]:
    """Return a function that returns the completions of bash for the words of a command line."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    script = tmp_path_factory.mktemp("bash") / "jaxrnn"
    with script.open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        assert entry.main(["completion", "bash"]) == 0
    subprocess.run([bash, "-n", script], check=True)

    def call(*words: str) -> set[str]:
        command = [bash, "-c", COMPLETE, "bash", script, "jaxrnn", *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert done.stderr == ""
        return set(done.stdout.split("\n")) - {""}

    return call


@pytest.mark.process
def test_bash_completes_commands(complete: Callable[..., set[str]]) -> None:
    assert complete("") == {"-h", "--help", *COMMANDS}
    assert complete("tr") == {"train"}


@pytest.mark.process
@pytest.mark.parametrize("name", COMMANDS)
def test_bash_completes_the_flags_of_a_command(
    name: str, complete: Callable[..., set[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = complete(name, "-")
    assert words == {word for word in words if word.startswith("-")}
    assert words >= flags_of(name, capsys)


@pytest.mark.process
def test_bash_completes_values_and_leaves_files_to_itself(
    complete: Callable[..., set[str]],
) -> None:
    assert complete("train", "--hidden-s") == {"--hidden-size"}
    assert complete("train", "--hidden-size", "8", "--cell", "g") == {"gru"}
    assert complete("generate", "--which", "") == {"best", "latest"}
    assert complete("generate", "runs/pl") == set()


def test_the_script_for_zsh(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(["completion", "zsh"], capsys)
    assert text.startswith("#compdef jaxrnn\n")
    for name in COMMANDS:
        for flag in flags_of(name, capsys):
            assert f"'{flag}'" in text
