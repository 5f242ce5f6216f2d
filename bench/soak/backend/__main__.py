"""Start the stand-in server. A wake hook runs this package's folder: `python -I -S FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

# -I ignores PYTHONPATH, and a folder that is run as a program stands first in the path by itself.
sys.path[0] = str(Path(__file__).parents[3])

from bench.soak.backend.server import main  # noqa: E402

main()
