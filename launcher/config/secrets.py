"""Secrets come from the environment or a file: what looks like one is refused, and never printed."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from typing import Any

# The published shapes of tokens: Hugging Face, AWS keys, GitHub, OpenAI and Anthropic, GitLab, Slack, Google, npm,
# PyPI, Databricks, HashiCorp Vault, Stripe, JSON Web Tokens, private keys.
TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{16,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|gh[pousr]_[A-Za-z0-9]{16,}"
    r"|github_pat_\w{16,}|sk-[\w-]{16,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|AIza[\w-]{35}|npm_[A-Za-z0-9]{36}"
    r"|pypi-[\w-]{16,}|dapi[0-9a-f]{32}|hvs\.[\w-]{24,}|[rs]k_live_[A-Za-z0-9]{16,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,})|-----BEGIN [A-Z ]*PRIVATE KEY"
)
# An AWS secret access key has no mark of its own: 40 characters of base64 with capitals, small letters and digits.
# A commit has no capitals, and a path more slashes or one in front.
AWS_SECRET = re.compile(
    r"(?<![\w/+.-])(?!/)(?!(?:[^/\s]*/){3})(?=\S*[a-z])(?=\S*[A-Z])(?=\S*[0-9])[A-Za-z0-9/+]{40}(?![\w/+=.-])"
)
# user:password@ of an address; a password with a slash in it is no valid one, but is typed all the same.
CREDENTIALS = re.compile(r"(?<=://)(?:[^/\s]+|[^/@:\s]+:(?!\d+/)[^@\s]+)@")
# ?access_token=... of an address: the parameter's name says what it is.
_QUERY = re.compile(
    r"(?<=[?&])([\w.-]*(?:token|secret|password|passwd|pwd|api[_-]?key|access[_-]?key(?:[_-]?id)?|signature|credentials?)"
    r"|(?:[\w.-]*[_.-])?(?:sig|o?auth)|x-amz-[\w-]+)=[^&#\s'\"]+",
    re.IGNORECASE,
)
# Variables of the environment whose name says that they hold a secret: its shape need not be known.
_SECRET_NAME = re.compile(r"((^|_)(TOKEN|SECRET|API_?KEY|ACCESS_KEY)|PASSWORD|PASSWD|_PWD)$", re.IGNORECASE)
_SHORTEST_SECRET = 12

ADVICE = (
    "secrets come from the environment (HF_TOKEN, AWS_PROFILE, MLFLOW_TRACKING_PASSWORD), never from a configuration"
)


@functools.cache
def environment_secrets() -> tuple[str, ...]:
    """Values of the environment that are secret by their variable's name. Short ones are left out: they would be found
    in words that are none."""
    return tuple(
        value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET
    )


def redact(text: str) -> str:
    """``text`` with every token, every secret of the environment, and every credential of an address, replaced by
    ***."""
    for secret in environment_secrets():
        text = text.replace(secret, "***")
    return without_credentials(AWS_SECRET.sub("***", TOKEN.sub("***", text)))


def without_credentials(text: str) -> str:
    """``text`` without the user:password@ of addresses in it, and without the values of their parameters that are
    credentials by their names."""
    return _QUERY.sub(r"\1=***", CREDENTIALS.sub("***@", text))


def looks_like_token(text: str) -> bool:
    """True when ``text`` holds something in the shape of a known access token, or a secret of the environment."""
    known = any(secret in text for secret in environment_secrets())
    return known or TOKEN.search(text) is not None or AWS_SECRET.search(text) is not None


def strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values of the strings in nested dicts and lists."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from strings(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from strings(child, f"{path}[{index}]")
    elif isinstance(value, str):
        yield path, value


def token_keys(value: Any, path: str = "") -> Iterator[str]:
    """Dotted keys of the strings in nested dicts and lists that look like a token."""
    return (key for key, text in strings(value, path) if looks_like_token(text))
