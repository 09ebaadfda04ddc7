"""Conversations: several turns, of which the assistant's are trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.data.rows import BadRowError, encodable

ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
}
_TOOLS = ("tool_calls", "function_call", "tool_call_id")

_written = json.JSONEncoder(sort_keys=True).encode
Message = dict[str, Any]
"""As chat templates take it: role and content, also reasoning_content and name where the row has them."""


@dataclass(frozen=True)
class ChatRow:
    """One conversation. It ends with an assistant turn."""

    messages: tuple[Message, ...]
    trained: tuple[int, ...]
    """places of the turns that the loss counts"""
    thinking: bool | None = None
    """enable_thinking of the template; None: not given"""
    line: int = field(default=0, compare=False)
    rendered: Any = field(default=None, compare=False, repr=False)
    """trainer.data.chat.Rendered, once that is known"""

    @property
    def instruction(self) -> str:
        """What the last answer is to."""
        return str(self.messages[-2]["content"])

    @property
    def context(self) -> str:
        """The turns before."""
        return "\n\n".join(f"{each['role']}: {each['content']}" for each in self.messages[:-2])

    @property
    def response(self) -> str:
        return str(self.messages[-1]["content"])

    def hashed(self) -> tuple[str, str]:
        """A conversation that goes on where another one ends has the same question."""
        first = next(place for place, each in enumerate(self.messages) if each["role"] == "assistant")
        return _written(self.messages[:first]), _written(self.messages[first:])


def conversation(messages: list[Message], begin: int, thinking: bool | None, line: int) -> ChatRow:
    """The row of ``messages``, trained on from place ``begin`` on. What follows the last answer that is trained on is
    left out: nothing is learnt from it. Raises BadRowError."""
    trained = [
        place
        for place, each in enumerate(messages)
        if place >= begin and each["role"] == "assistant" and each.pop("weight", 1)
    ]
    if not trained:
        raise BadRowError("has no assistant turn to train on")
    if messages[0]["role"] == "assistant" or [each["role"] for each in messages[:2]] == ["system", "assistant"]:
        raise BadRowError("begins with an assistant turn, so there is nothing that it answers")
    kept = messages[: trained[-1] + 1]
    return ChatRow(tuple(kept), tuple(trained), thinking, line)


def turns(value: Any, name: str, sharegpt: bool) -> list[Message]:
    """The messages in a field, without what is null or an empty system turn. Raises BadRowError."""
    if not isinstance(value, list) or not value:
        what = "empty" if value == [] else type(value).__name__
        raise BadRowError(f"field {name!r} must be a list of turns, not {what}")
    found = [_turn(each, f"turn {number} of {name!r}", sharegpt) for number, each in enumerate(value, start=1)]
    return [each for each in found if each["role"] != "system" or each["content"].strip()]


def _turn(value: Any, where: str, sharegpt: bool) -> Message:
    if not isinstance(value, Mapping):
        raise BadRowError(f"{where} must be an object, not {type(value).__name__}")
    # Readers of tables fill up what other rows have with null.
    own = {key: each for key, each in value.items() if each is not None}
    if tools := [key for key in _TOOLS if own.get(key)]:
        raise BadRowError(f"{where} has {tools[0]!r}, and calls of tools aren't trained on yet")
    role = _role(own, where, sharegpt)
    message: Message = {"role": role, "content": _content(own, "value" if sharegpt else "content", where, role)}
    for key in ("reasoning_content", "name"):
        if key in own:
            message[key] = _words(own[key], f"{key!r} of {where}")
    if "weight" in own and role == "assistant":
        message["weight"] = _weight(own["weight"], where)
    return message


def _role(turn: Mapping[str, Any], where: str, sharegpt: bool) -> str:
    key, roles = ("from", SHAREGPT_ROLES) if sharegpt else ("role", ROLES)
    if key not in turn:
        raise BadRowError(f"{where} has no {key!r} (there are: {', '.join(map(repr, turn)) or 'none'})")
    role = turn[key]
    if not isinstance(role, str) or role not in roles:
        raise BadRowError(f"{where}: {key}={role!r} is none of {', '.join(roles)}")
    return roles[role]


def _content(turn: Mapping[str, Any], key: str, where: str, role: str) -> str:
    if key not in turn:
        raise BadRowError(f"{where} has no {key!r} (there are: {', '.join(map(repr, turn))})")
    value = turn[key]
    if isinstance(value, list):
        value = "".join(_part(each, where) for each in value)
    text = _words(value, f"{key!r} of {where}")
    if not text.strip() and role != "system":
        raise BadRowError(f"{where} is empty")
    return text


def _part(value: Any, where: str) -> str:
    """Of a content that is a list of parts."""
    if isinstance(value, Mapping) and value.get("type", "text") == "text" and isinstance(value.get("text"), str):
        return str(value["text"])
    kind = value.get("type") if isinstance(value, Mapping) else type(value).__name__
    raise BadRowError(f"{where}: its content has a part of the kind {kind!r}; only text is trained on")


def _words(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRowError(f"{name} must be text, not {type(value).__name__}")
    return encodable(value, name.strip("'"))


def _weight(value: Any, where: str) -> int:
    if value not in (0, 1):
        raise BadRowError(f"{where}: weight={value!r} is neither 0, which leaves it out of the loss, nor 1")
    return int(value)
