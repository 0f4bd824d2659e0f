"""Prints the requirements of pyproject.toml, one a line: run by the bootstrap script before any library is there.

`libraries.py PYPROJECT [EXTRA…]`: the base dependencies, or with extras those of the extras alone.
"""

import sys
import tomllib
from pathlib import Path


def main() -> None:
    project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
    extras = sys.argv[2:]
    wanted = [r for e in extras for r in project["optional-dependencies"][e]] if extras else project["dependencies"]
    print("\n".join(wanted))


if __name__ == "__main__":
    main()
