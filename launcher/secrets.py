"""Secrets come from the environment or a file: what looks like one is refused, and never printed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

# The published shapes of tokens: Hugging Face, AWS, GitHub, OpenAI and Anthropic, GitLab, Slack, private keys.
TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{16,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|gh[pousr]_[A-Za-z0-9]{16,}"
    r"|github_pat_\w{16,}|sk-[\w-]{16,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,})|-----BEGIN [A-Z ]*PRIVATE KEY"
)
CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")

ADVICE = (
    "secrets come from the environment (HF_TOKEN, AWS_PROFILE, MLFLOW_TRACKING_PASSWORD), never from a configuration"
)


def redact(text: str) -> str:
    """``text`` with every token, and every user:password@ of an address, replaced by ***."""
    return CREDENTIALS.sub("***@", TOKEN.sub("***", text))


def looks_like_token(text: str) -> bool:
    """True when ``text`` holds something in the shape of a known access token."""
    return TOKEN.search(text) is not None


def token_keys(value: Any, path: str = "") -> Iterator[str]:
    """Dotted keys of the strings in nested dicts and lists that look like a token."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from token_keys(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from token_keys(child, f"{path}[{index}]")
    elif isinstance(value, str) and looks_like_token(value):
        yield path
