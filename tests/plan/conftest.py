"""The command as tests/launcher starts it."""

from __future__ import annotations

from tests.launcher.conftest import answer, cwd, launch, plan

__all__ = ["answer", "cwd", "launch", "plan"]
