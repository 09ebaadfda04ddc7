"""How long a test waits for what must come. Nothing is concluded from it: machines are shared, and some are slow."""

from __future__ import annotations

PATIENCE = 900.0
"""seconds"""
