"""`python -m vlkv.serving.triton MODEL_REPOSITORY [ARGUMENTS]` runs the installed tritonserver until Ctrl-C.

ARGUMENTS are the server's own. For a server that `make .venv/served` installed, this command sets its environment, its
backends' folder and its libraries.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vlkv.errors import VlkvError
from vlkv.serving.triton.server import command, environment, find
from vlkv.serving.triton.supervisor import Supervisor


def main() -> None:
    """Runs the server and restarts it if a model's process dies; exit code 2 if there is no server or repository."""
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
    sys.exit(Supervisor(line, environment(installed)).run())


if __name__ == "__main__":
    main()
