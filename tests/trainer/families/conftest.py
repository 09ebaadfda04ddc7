"""The fixtures of command lines, as in tests/launcher."""

from tests.launcher.conftest import answer, cwd, launch, plan

__all__ = ["answer", "cwd", "launch", "plan"]
