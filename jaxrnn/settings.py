"""Rules of a setting: may it change on resume, and may it differ between processes.

    @dataclasses.dataclass(frozen=True)
    class Config:
        hidden_size: int = 256                                # a resumed run keeps it
        learning_rate: float = setting(2e-3, may_change=True)

The fields of a nested dataclass inherit its rules, unless they have rules of their own. A field without
any rules is part of what the run is: it may not change, it is the same in all processes, and a run that
began before the field existed counts as having its default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

_KEY = "jaxrnn.settings"
_NOT_GIVEN = object()


class Rules(NamedTuple):
    """The rules of one setting.

    may_change: a run may be resumed with another value.
    per_process: the value may differ between the processes of one training.
    absent: the value of runs that began before the setting existed.
    """

    may_change: bool = False
    per_process: bool = False
    absent: Any = None


# The rules of a field that neither has nor inherits any.
DEFAULTS = Rules()


def setting(
    default: T,
    *,
    may_change: bool | None = None,
    per_process: bool | None = None,
    absent: object = _NOT_GIVEN,
) -> T:
    """Return a dataclass field with a default and with rules, which `Rules` explains.

    Args:
      default: the default value.
      may_change: None inherits the rule of the field that holds the dataclass.
      per_process: None inherits, too.
      absent: `default` if not given.
    """
    return dataclasses.field(default=default, metadata=_metadata(may_change, per_process, absent))


def nested(
    factory: Callable[[], T], *, may_change: bool | None = None, per_process: bool | None = None
) -> T:
    """Return a dataclass field that holds another dataclass, whose fields inherit the rules.

    Args:
      factory: the other dataclass.
      may_change: as in `setting`.
      per_process: as in `setting`.
    """
    metadata = _metadata(may_change, per_process, _NOT_GIVEN)
    return dataclasses.field(default_factory=factory, metadata=metadata)


def _metadata(
    may_change: bool | None, per_process: bool | None, absent: object
) -> dict[str, dict[str, object]]:
    rules: dict[str, object] = {}
    if may_change is not None:
        rules["may_change"] = may_change
    if per_process is not None:
        rules["per_process"] = per_process
    if absent is not _NOT_GIVEN:
        rules["absent"] = absent
    return {_KEY: rules}


def rules_of(config: Any, inherited: Rules = DEFAULTS) -> dict[str, Rules]:
    """Return the rules of all settings of a dataclass by name, those of nested dataclasses included.

    Args:
      config: an instance, since only its values show what is nested.
      inherited: the rules of fields that have none.
    """
    found: dict[str, Rules] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        own = field.metadata.get(_KEY, {})
        if dataclasses.is_dataclass(value):
            found |= rules_of(value, inherited._replace(**own))
        else:
            found[field.name] = inherited._replace(**{"absent": field.default} | own)
    return found
