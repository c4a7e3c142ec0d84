"""The chart's value behind each setting, for the doctor's advice."""

from __future__ import annotations

import re

from clothing_gateway.settings import EXTRA_ENV, ROWS

_CHANGES = {row.variable: row.chart if row.chart != EXTRA_ENV else f"{row.variable} in {EXTRA_ENV}" for row in ROWS}


def values_for(text: str) -> str:
    """The chart's values for the settings that a text names, each once.

    A text names a setting by its variable or its flag.
    """
    names = re.findall(r"(?:GATEWAY|TF_SERVING)_[A-Z_]*[A-Z]", text)
    names += [row.variable for flag in re.findall(r"--[a-z][a-z-]+", text) for row in ROWS if row.flag == flag]
    return ", ".join(dict.fromkeys(_CHANGES[name] for name in names if name in _CHANGES))
