"""Times as Go's JSON has them."""

from __future__ import annotations

import re

from ..errors import CheckpointError

_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d?):(\d\d):(\d\d)(?:[.,](\d+))?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII)


def go_time(text: str) -> str:
    """An RFC 3339 time as Go prints it again: nanoseconds at most, without trailing zeros, Z for UTC.

    Raises: CheckpointError for what Go's time.Time refuses.
    """
    if not (m := _TIME.fullmatch(text)):
        raise CheckpointError(f"{text!r} is no RFC 3339 time such as 2026-01-31T12:00:00Z")
    year, month, day, hour, minute, second = (int(m[i]) for i in range(1, 7))
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    days = (31, 29 if leap else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
    offset = (int(m[9]), int(m[10])) if m[8] else (0, 0)
    if not (1 <= month <= 12 and 1 <= day <= days[month - 1] and hour < 24 and minute < 60 and second < 60):
        raise CheckpointError(f"{text!r} is no date and time of the calendar")
    if offset[0] > 23 or offset[1] > 59:
        raise CheckpointError(f"{text!r} has no offset that a clock can have")
    fraction = (m[7] or "")[:9].rstrip("0")
    zone = f"{m[8]}{offset[0]:02}:{offset[1]:02}" if any(offset) else "Z"
    stamp = f"{m[1]}-{m[2]}-{m[3]}T{hour:02}:{m[5]}:{m[6]}"
    return f"{stamp}.{fraction}{zone}" if fraction else stamp + zone
