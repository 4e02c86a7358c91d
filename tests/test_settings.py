"""Settings say whether a resumed run may change them; errors name them as Python or as flags."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrnn import charlm, prepare, train
from jaxrnn.arguments import in_flags
from jaxrnn.errors import InputError
from jaxrnn.settings import Rules, nested, rules_of, setting
from jaxrnn.training import run_description
from jaxrnn.training.config import TrainingConfig
from tests.support.oracle import unchecked

pytestmark = pytest.mark.once

# Part of what a run is.
FIXED = {
    "activation", "average", "batch", "bytes", "cell", "dtype", "embedding_size", "forget_bias",
    "freeze", "hidden_size", "layers", "lines", "optimizer", "overlap", "peephole", "recurrent_init",
    "reset", "seed", "seq_len", "shuffle", "tie", "tokens",
}  # fmt: skip
# How long, how and where a run continues.
FREE = {
    "accelerator", "accumulate", "average_decay", "average_tail", "beta1", "beta2", "clip_norm",
    "connect_timeout", "coordinator", "data", "distributed", "dropout", "embedding_dropout", "encoding",
    "epochs", "eval_every", "extend_vocabulary", "glob", "implementation", "init_from", "init_which",
    "label_smoothing", "learning_rate", "log_every", "memory_map", "mesh", "muon_learning_rate",
    "newlines", "num_processes", "output_bias",
    "overwrite", "preset", "process_id", "sample_every", "sample_prime", "schedule", "steps",
    "stop_at", "tensorboard",
    "variational", "warmup", "weight_decay", "weight_dropout", "workdir",
}  # fmt: skip


def test_every_setting_of_a_training_is_fixed_or_free() -> None:
    """A new setting has to be added to one of the sets above, which is the moment to decide."""
    rules = rules_of(train.TrainOptions())
    assert {name for name, rule in rules.items() if not rule.may_change} == FIXED
    assert {name for name, rule in rules.items() if rule.may_change} == FREE
    own = {name for name, rule in rules.items() if rule.per_process}
    assert own == {"data", "init_from", "process_id", "workdir"}


def test_every_option_of_the_command_declares_its_rules() -> None:
    for field in dataclasses.fields(train.TrainOptions):
        assert field.metadata, field.name


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 3
    rate: float = setting(0.1, may_change=True)
    place: str = setting("a", per_process=True)
    shifted: bool | None = setting(True, absent=None)


@dataclasses.dataclass(frozen=True)
class Outer:
    kept: Inner = nested(Inner)
    count: int = 5


@dataclasses.dataclass(frozen=True)
class Free:
    inner: Inner = nested(Inner, may_change=True)


def test_rules_are_inherited_and_a_field_without_any_is_safe() -> None:
    rules = rules_of(Outer())
    assert rules["width"] == Rules(may_change=False, per_process=False, absent=3)
    assert rules["count"] == Rules(may_change=False, per_process=False, absent=5)
    assert rules["rate"] == Rules(may_change=True, per_process=False, absent=0.1)
    assert rules["place"] == Rules(may_change=False, per_process=True, absent="a")
    assert rules["shifted"] == Rules(may_change=False, per_process=False, absent=None)
    assert all(rule.may_change for rule in rules_of(Free()).values())


def test_the_description_of_a_run_has_rules_for_everything() -> None:
    described = run_description.describe(train.TrainOptions(), run_description.Text("a", "0"))
    assert described.rules["name"].may_change and described.rules["name"].per_process
    assert not described.rules["sha256"].may_change
    assert described.values["text"] == {"name": "a", "sha256": "0"}


# --- errors ---


@pytest.mark.parametrize(
    ("message", "flags"),
    [
        ("seq_len must be at least 1, not 0", "--seq-len must be at least 1, not 0"),
        ("the batch must be small", "the batch must be small"),
        ("`batch` 5 is odd; see `accumulate`", "--batch 5 is odd; see --accumulate"),
        ("`hidden_size=5` is odd", "--hidden-size 5 is odd"),
        ('`glob="*.c"` finds nothing', '--glob "*.c" finds nothing'),
        ('memory_map="never" is small', "--memory-map never is small"),
        ("not UTF-8: try `as_bytes`", "not UTF-8: try --bytes"),
        ("`mesh` data=3,model=1 needs 3", "--mesh data=3,model=1 needs 3"),
        ("`process_id` and `nothing`", "--process-id and `nothing`"),
    ],
)
def test_names_of_settings_become_flags(message: str, flags: str) -> None:
    assert in_flags(message, train.TrainOptions) == flags
    assert in_flags(InputError(message), train.TrainOptions) == flags


def test_only_the_options_of_a_command_become_flags() -> None:
    assert in_flags("choose another `output`", prepare.PrepareOptions) == "choose another --output"
    assert in_flags("lower `batch`", prepare.PrepareOptions) == "lower `batch`"


def test_python_and_the_command_line_name_a_setting_in_their_own_way(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(InputError, match=r"^`batch` 5 cannot be computed in `accumulate` 2 equal"):
        TrainingConfig(batch=5, accumulate=2)
    with pytest.raises(InputError, match=r"^hidden_size must be at least 1, not 0$"):
        charlm.ModelConfig(hidden_size=0)
    assert train.main(["--batch", "5", "--accumulate", "2"]) == 2
    assert train.main(["--hidden-size", "0"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: --batch 5 cannot be computed in --accumulate 2 equal parts")
    assert second == "error: --hidden-size must be at least 1, not 0"


@pytest.mark.parametrize("name", ["optimizer", "schedule", "average", "output_bias"])
def test_a_choice_that_does_not_exist_is_refused(name: str) -> None:
    """It must not be taken for one of the others."""
    with unchecked(), pytest.raises(InputError, match=rf"^{name} must be one of .*, not 'adamw'$"):
        TrainingConfig(**{name: "adamw"})


# --- no side effects ---

UNCHANGED = """
import logging, sys, warnings
def state():
    loggers = [logging.getLogger(name) for name in (None, "absl", "asyncio", "jax")]
    return (
        [(logger.level, list(logger.filters), list(logger.handlers)) for logger in loggers],
        list(warnings.filters), warnings.showwarning, sys.unraisablehook, sys.excepthook,
    )
import jax, flax, optax, orbax.checkpoint
before = state()
import jaxrnn
assert state() == before, "import"
jaxrnn.load(sys.argv[1])
assert state() == before, "load"
"""


@pytest.mark.process
def test_importing_and_loading_change_nothing_in_the_process() -> None:
    run = Path(__file__).parent / "golden" / "run-format-1"
    command = [sys.executable, "-c", UNCHANGED, str(run)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
