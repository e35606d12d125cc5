"""Secrets taken out of text: of what is shown, logged, or leaves the host. None should be in it; this is for what slipped in.

Two ways together: whatever stands where a secret stands (``password=…``, ``://user:…@``, a PEM key), and the values of
secrets that are known by then, wherever they stand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from urllib.parse import quote

MASK = "***"
SHORTEST = 4
"""Letters of the shortest value that is masked wherever it stands: a shorter one stands in words that are none."""

_VALUE = r"""\"{3}.*?\"{3}|'{3}.*?'{3}|\\*"(?:\\.|[^"\\\n])*"|\\*'(?:\\.|[^'\\\n])*'|[^\s"',;&\\<>]+"""
_NAMED = re.compile(
    r"""((?:password|passwd|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key)\b\\*["']?\s*[=:]\s*)"""
    rf"({_VALUE})",
    re.IGNORECASE | re.DOTALL,
)
_ELEMENT = re.compile(r"(<(\w*(?:password|secret|token)\w*)>)([^<]+)(?=</\2>)", re.IGNORECASE)
_BEFORE_HOST = re.compile(r"""(:)((?!/)[^\s"'<>]{1,200})(?=@)""")  # of a URL, or without its scheme
_HEADER = re.compile(r"(Authorization:\s*\w+\s+)(\S+)", re.IGNORECASE)
_SUSPECT = re.compile("pass|pwd|secret|token|key|authorization|@", re.IGNORECASE)
_PEM = re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL)


def mask(text: str, known: Collection[str] = ()) -> str:
    """The text without what looks like a secret and without the ``known`` ones."""
    if not known and not _SUSPECT.search(text):  # nearly every line of a log
        return text
    text = _PEM.sub(MASK, text)
    for value in sorted(known, key=len, reverse=True):
        for form in {value, json.dumps(value)[1:-1], quote(value, safe="")}:
            text = text.replace(form, MASK) if len(value) >= SHORTEST else text
    for pattern in (_NAMED, _BEFORE_HOST, _HEADER):
        text = pattern.sub(rf"\g<1>{MASK}", text)
    return _ELEMENT.sub(rf"\g<1>{MASK}", text)


def found(text: str) -> set[str]:
    """The values in a text that look like secrets."""
    named = {match[2].strip("\\\"'") for match in _NAMED.finditer(text)}
    return (named | {match[2] for match in _BEFORE_HOST.finditer(text)}) - {""}
