"""Installs clients that cannot be in the tests' own environment: `python -m tests.clients.install`.

`make test-slow` calls it. They are folders of the virtual environment that this runs in: what npm has, where there is Node, and
LiteLLM's proxy, whose dependencies conflict with others.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
NODE = Path(sys.prefix) / "clients-node"
LITELLM = Path(sys.prefix) / "clients-litellm"
NODE_FILES = ("package.json", "package-lock.json")
LITELLM_PINS = "litellm-proxy.txt"


def main() -> None:
    if shutil.which("npm") is None:
        sys.stderr.write("npm is missing: the tests of JavaScript clients will be skipped\n")
    elif _is_old(NODE, *(f"node/{name}" for name in NODE_FILES)):
        for name in NODE_FILES:
            shutil.copy(HERE / "node" / name, NODE)
        # No scripts: none of the packages needs what its installation would build or download.
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(command, cwd=NODE, check=True)
        _is_new(NODE)
    if _is_old(LITELLM, LITELLM_PINS):
        venv.create(LITELLM, with_pip=True, clear=True)
        command = [str(LITELLM / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        command += [
            "--disable-pip-version-check",
            "--progress-bar=off",
            "--no-deps",
            "-r",
            str(HERE / LITELLM_PINS),
        ]
        subprocess.run(command, check=True)
        _is_new(LITELLM)


def _is_old(folder: Path, *sources: str) -> bool:
    """Whether a folder, which is made, was not filled from the files of `tests/clients` as they are."""
    folder.mkdir(exist_ok=True)
    stamp = folder / ".installed"
    made = stamp.stat().st_mtime if stamp.exists() else 0
    return any((HERE / source).stat().st_mtime > made for source in sources)


def _is_new(folder: Path) -> None:
    (folder / ".installed").touch()


if __name__ == "__main__":
    main()
