"""Which processor this is."""

from __future__ import annotations

from contextlib import suppress

FIELDS = {"vendor_id", "model name", "flags", "CPU implementer", "CPU part", "Features"}


def processor() -> dict[str, str]:
    """What tells processors apart, of the first one: the others' lines can take long to make. Nothing without /proc."""
    fields = {}
    with suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() in FIELDS:
                fields[key.strip()] = value.strip()
            elif not key.strip() and fields:
                break
    return fields
