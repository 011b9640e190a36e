"""`python -m vlkv.serving.triton MODEL_REPOSITORY [ARGUMENTS]` runs the installed tritonserver until Ctrl-C.

ARGUMENTS are the server's own. For a server that `make .venv/served` installed, this command sets its environment, its
backends' folder and its libraries.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vlkv.errors import VlkvError
from vlkv.serving.triton.server import command, environment, find


def main() -> None:
    """Replaces this process by the server; exit code 2 if there is no server or no repository."""
    try:
        if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
            raise VlkvError(
                "usage: python -m vlkv.serving.triton MODEL_REPOSITORY [tritonserver's arguments]"
            )
        repository = Path(sys.argv[1])
        if not repository.is_dir():
            raise VlkvError(
                f"{repository}: no such directory; `vlkv triton ENGINE -o {repository}` writes one"
            )
        installed = find()
    except VlkvError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    line = command(installed, repository, sys.argv[2:])
    os.execve(line[0], line, environment(installed))


if __name__ == "__main__":
    main()
