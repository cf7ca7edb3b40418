"""The variables by which a user leaves a setting of the process alone: ``GOMETAL_...=keep``."""

from __future__ import annotations

import os
import warnings


def keeps(variable: str) -> bool:
    """Whether it is ``keep``; a warning tells that another value means nothing."""
    value = os.environ.get(variable, "").strip()
    if value not in ("", "keep"):
        warnings.warn(f"{variable} must be 'keep' or unset, got {value[:60]!r}; it is ignored", stacklevel=2)
    return value == "keep"
