"""The words of IR text: what a plain name looks like, how other names are quoted, which words are reserved."""

from __future__ import annotations

import json
import re
from typing import Final

from ..types import DTYPES

VERSION: Final = 1
"""Of the text form; the first line of every file states it."""

PLAIN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*+")
"""A name that needs no quotes."""

STRING: Final = re.compile(r'"(?:[^"\\\n]|\\.)*+"')

RESERVED: Final = frozenset({"true", "false", "none", "inf", "nan", *DTYPES})
"""Words that mean something where an attribute's value is expected, and so cannot be symbolic sizes there."""

# What cannot be written as UTF-8, and what some reader takes for the end of a line or does not show.
_UNREADABLE: Final = re.compile("[\ud800-\udfff\x7f-\x9f\u2028\u2029\ufeff]")


def quote(text: str) -> str:
    """`text` as a JSON string; letters of all scripts stay as they are where nothing forbids it."""
    return json.dumps(text, ensure_ascii=_UNREADABLE.search(text) is not None)


def name_text(name: str) -> str:
    """`name`, in quotes unless it is plain."""
    return name if PLAIN_NAME.fullmatch(name) else quote(name)
