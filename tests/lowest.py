"""Prints constraints for pip: of each package in pyproject.toml the lowest version that it allows."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
needed = {*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)}
for name, version in sorted(re.findall(r"^([\w-]+)(?:\[.*\])?>=([\d.]+)", "\n".join(needed), re.MULTILINE)):
    print(f"{name}=={version}")
