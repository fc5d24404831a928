"""Settings that are declared once: each field of a configuration says its type, what is allowed, and what it means.

A dataclass with such fields calls `check_settings` when it is made; the command line and the panel read the same
declarations for their options, help texts and sliders.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any

FP32_MAX = 3.4028234663852886e38  # weights are computed in fp32: a setting beyond would be infinite there


@dataclass(frozen=True)
class Setting:
    """What a field of a configuration takes."""

    kind: type  # int, float or str; a float may be given as an int
    help: str
    allowed: str  # in words, to stand behind "it must be"
    holds: Callable[[Any], bool]
    optional: bool = False  # whether None is a value too
    slider: tuple[float, float, float] | None = None  # lowest, highest and step of a control

    def takes(self, value: object) -> bool:
        if value is None:
            return self.optional
        types = (int, float) if self.kind is float else self.kind
        if not isinstance(value, types) or isinstance(value, bool):
            return False
        if self.kind is float and not (abs(value) <= FP32_MAX or value == math.inf):  # not NaN either
            return False
        return self.holds(value)


def _declare(default, setting: Setting):
    return dataclasses.field(default=default, metadata={"setting": setting})


def whole(default=MISSING, help: str = "", least: int = 1, most: int | None = None, **more):
    """A field for a whole number from `least` to `most`, else as far as torch has sizes."""
    allowed = f"{least} or more and below 2^63" if most is None else f"from {least} to {most:,}"
    allowed = f"{'None or ' if more.get('optional') else ''}a whole number, {allowed}"
    limit = 2**63 if most is None else most + 1
    return _declare(default, Setting(int, help, allowed, lambda value: least <= value < limit, **more))


def real(default, help: str, allowed: str, holds: Callable[[float], bool], **more):
    """A field for a number."""
    return _declare(default, Setting(float, help, allowed, holds, **more))


def choice(default: str, help: str, options: tuple[str, ...]):
    """A field for one of some words."""
    return _declare(default, Setting(str, help, f"one of {', '.join(options)}", lambda value: value in options))


def with_default(config: type, name: str, default):
    """The field `name` of a configuration for one that inherits from it, with another default."""
    return _declare(default, settings_of(config)[name])


def settings_of(config: type) -> dict[str, Setting]:
    """The declared fields of a configuration, by name."""
    return {field.name: field.metadata["setting"] for field in fields(config)}


def defaults_of(config: type) -> dict[str, Any]:
    """The default of each declared field that has one."""
    return {field.name: field.default for field in fields(config) if field.default is not MISSING}


def check_settings(config) -> None:
    """Raise ValueError naming the first field whose value is not allowed, the value, and what is."""
    for name, setting in settings_of(type(config)).items():
        require(config, name, setting.allowed, setting.takes(getattr(config, name)))


def require(config, name: str, allowed: str, holds: bool) -> None:
    """Raise ValueError with one clear sentence unless `holds`."""
    if not holds:
        raise ValueError(f"{type(config).__name__}.{name} is {getattr(config, name)!r:.200}, it must be {allowed}")


def refuse_unknown(config: type, names) -> None:
    """Raise ValueError naming the first of `names` that is no field of the configuration."""
    known = [field.name for field in fields(config)]
    for name in names:
        if name not in known:
            raise ValueError(f"{config.__name__} has no field {name!r}, its fields are {', '.join(known)}")
