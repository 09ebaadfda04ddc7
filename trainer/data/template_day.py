"""The day that chat templates are told."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import chat_template_utils

DAY = datetime.datetime(2024, 7, 26)
"""The one that Llama 3's templates have of their own: rows must not depend on the day."""
_NAME = "strftime_now"


def asks_for_day(template: Any) -> bool:
    """Whether what is written by this template depends on the day."""
    return _NAME in str(template)


@contextmanager
def told_day(template: str) -> Iterator[None]:
    """Inside, transformers renders ``template`` as if it were DAY. Raises what jinja raises for one that is none.

    The function is put in the environment of the compiled template, which transformers keeps: of a function that is
    given as a variable, transformers 5 tells the template its type's name.
    """
    compiled: Any = chat_template_utils._compile_jinja_template(template)
    functions = compiled.environment.globals
    today = functions[_NAME]
    functions[_NAME] = DAY.strftime
    try:
        yield
    finally:
        functions[_NAME] = today
