"""Prints the lowest version of each package that pyproject.toml permits, as constraints for pip.

$ python tests/lowest_versions.py export > constraints.txt

Arguments are extras, beside what is always needed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest(requirements: list[str]) -> list[str]:
    """`name>=1.2` becomes `name==1.2`; one without a lower bound is a `ValueError`."""
    found = []
    for requirement in requirements:
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?>=([0-9][^,;\s]*)", requirement)
        if match is None:
            raise ValueError(f"{requirement!r} has no lower bound")
        found.append(f"{match[1]}=={match[2]}")
    return found


def main(extras: list[str]) -> None:
    """Prints a line a package."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    wanted = project["dependencies"]
    for extra in extras:
        wanted = wanted + project["optional-dependencies"][extra]
    print("\n".join(lowest(wanted)))


if __name__ == "__main__":
    main(sys.argv[1:])
