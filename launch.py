"""The one command: `python launch.py method=lora`. Composes a run with Hydra and hands it to the launcher."""

from __future__ import annotations

import sys

from launcher.app import main

if __name__ == "__main__":
    sys.exit(main())
