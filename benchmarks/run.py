"""Run every benchmark of this folder and gather what they say in results.md and results.json.

A benchmark is a module with a ``main()`` that measures, writes its own .md and .json, and returns the Markdown.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
# one name a module; scripts that look for faults (fuzz_json, ...) are no benchmarks
BENCHMARKS = ("step_time", "layer_time", "inference_time", "scaling", "formats", "json_codec", "async_save")


def main() -> None:
    """Run them one after the other."""
    sys.path.insert(0, str(FOLDER))
    parts: list[str] = []
    for name in BENCHMARKS:
        print(f"{name} ...", flush=True)
        parts.append(importlib.import_module(name).main())
        print(parts[-1])
    (FOLDER / "results.md").write_text("\n".join(parts))
    found = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in BENCHMARKS}
    (FOLDER / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"{FOLDER / 'results.md'}, {FOLDER / 'results.json'}: written")


if __name__ == "__main__":
    main()
