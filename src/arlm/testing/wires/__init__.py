"""The vendors' protocols that the scripted provider speaks, one small object each, told apart by path and headers."""

from __future__ import annotations

from collections.abc import Mapping

from .anthropic import Anthropic
from .base import Wire
from .chat import Chat
from .gemini import Gemini
from .responses import Responses

CHAT = Chat()
RESPONSES = Responses()
ANTHROPIC = Anthropic()
GEMINI = Gemini()
WIRES: tuple[Wire, ...] = (CHAT, RESPONSES, ANTHROPIC, GEMINI)


def called(path: str) -> Wire | None:
    """The wire on which a POST to this path is a call; None: none."""
    return next((wire for wire in WIRES if wire.recognises(path)), None)


def spoken(path: str, headers: Mapping[str, str]) -> Wire:
    """The wire of a client that asks for something else than a call."""
    return next(wire for wire in (ANTHROPIC, GEMINI, CHAT) if wire.is_spoken(path, headers))
