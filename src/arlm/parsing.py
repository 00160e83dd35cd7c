"""Code blocks in a model's reply."""

from __future__ import annotations

import re
from dataclasses import dataclass

OPENING = re.compile(r"^[ \t]{0,3}(?P<ticks>`{3,})[ \t]*(?P<tag>repl|python|python3|py)[ \t]*$", re.IGNORECASE)
STRING = re.compile(r"\"\"\"|'''|\"|'")


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeBlock:
    """A fenced block.

    Attributes:
        code: its text, without the fences.
        closed: whether its closing fence was there; an open block may have been cut off by the model's output limit.
    """

    code: str
    closed: bool = True


def code_blocks(text: str) -> list[CodeBlock]:
    """The ```repl and ```python blocks of a reply, in order.

    A fence line inside a triple-quoted string of the code does not close the block. Where the code's strings never end (it is not valid
    Python anyway), the first closing line counts.
    """
    lines = text.splitlines(keepends=True)
    blocks = []
    at = 0
    while at < len(lines):
        opening = OPENING.match(lines[at].rstrip("\r\n"))
        at += 1
        if opening is None:
            continue
        end = _closing_line(lines, at, len(opening["ticks"]))
        blocks.append(CodeBlock(code="".join(lines[at : len(lines) if end is None else end]).rstrip("\r\n"), closed=end is not None))
        if end is None:
            break
        at = end + 1
    return [block for block in blocks if block.code.strip()]


def _closing_line(lines: list[str], start: int, ticks: int) -> int | None:
    """The first closing fence outside a triple-quoted string; else the first closing fence at all; else None."""
    first: int | None = None
    quote = ""
    for number in range(start, len(lines)):
        if _is_closing(lines[number], ticks):
            if not quote:
                return number
            first = number if first is None else first
        quote = _open_quote(lines[number], quote)
    return first


def _is_closing(line: str, ticks: int) -> bool:
    stripped = line.strip()
    return len(stripped) >= ticks and set(stripped) == {"`"} and len(line) - len(line.lstrip(" \t")) <= 3


def _open_quote(line: str, quote: str) -> str:
    """The triple quote that is open after ``line``, given the one open before it ("" for none)."""
    at = 0
    while at < len(line):
        if quote:
            at = _skip_string(line, at, quote)
            if at < 0:
                return quote
            quote = ""
            continue
        found = STRING.search(line, at)
        comment = line.find("#", at)
        if found is None or 0 <= comment < found.start():
            return ""
        at, mark = found.end(), found.group()
        if len(mark) == 3:
            quote = mark
        else:
            at = _skip_string(line, at, mark)
            if at < 0:
                return ""  # a plain string ends with its line at the latest
    return quote


def _skip_string(line: str, at: int, mark: str) -> int:
    """The position after the end of a string that ends with ``mark``, or -1 when it does not end in this line."""
    while True:
        end = line.find(mark, at)
        if end < 0:
            return -1
        backslash = line.find("\\", at)
        if not 0 <= backslash < end:
            return end + len(mark)
        at = backslash + 2
