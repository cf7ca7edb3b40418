"""Run every benchmark of this folder and gather what they say in results.md.

A benchmark is a module with a ``main()`` that measures, writes its own .md and .json, and returns the Markdown.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
BENCHMARKS = (
    "async_save",
    "json_codec",
)  # one name a module; scripts that look for faults (fuzz_json, ...) are no benchmarks


def main() -> None:
    """Run them one after the other."""
    sys.path.insert(0, str(FOLDER))
    parts: list[str] = []
    for name in BENCHMARKS:
        print(f"{name} ...", flush=True)
        parts.append(importlib.import_module(name).main())
        print(parts[-1])
    (FOLDER / "results.md").write_text("\n".join(parts))
    print(f"{FOLDER / 'results.md'}: written")


if __name__ == "__main__":
    main()
