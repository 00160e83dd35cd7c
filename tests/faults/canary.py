"""A secret that must never be seen again, and a search for it in every form."""

import base64
import binascii
import json
import secrets
import traceback
import urllib.parse
from collections.abc import Iterator

WINDOW = 12  # characters of the secret that are as good as all of it: half a key in a message is a leak too


class Canary:
    """A key, and where it has been looked for."""

    def __init__(self) -> None:
        self.secret = secrets.token_hex(24)
        self.key = f"sk-canary-{self.secret}"
        forms = {self.secret, self.secret[::-1], urllib.parse.quote(self.key), binascii.hexlify(self.key.encode()).decode()}
        forms |= {base64.b64encode(b"x" * shift + self.key.encode()).decode()[8:-8] for shift in range(3)}
        self.needles = {form[at : at + WINDOW] for form in forms for at in range(len(form) - WINDOW + 1) if not form.startswith("sk-")}
        self.seen: dict[str, int] = {}

    def look(self, where: str, what: object) -> None:
        """Look for the key in ``what``: bytes, an exception with all that it came from, or anything else by its str and repr."""
        for text in _texts(what):
            self.seen[where] = self.seen.get(where, 0) + len(text)
            found = next((needle for needle in self.needles if needle in text), None)
            if found is not None:
                at = text.index(found)
                raise AssertionError(f"the key is in {where}: …{text[max(0, at - 200) : at + 200]}…")


def _texts(what: object) -> Iterator[str]:
    match what:
        case bytes() | bytearray():
            yield bytes(what).decode("latin-1")
        case str():
            yield what
        case BaseException():
            yield "".join(traceback.format_exception(what))
            for error in _family(what):
                yield from (str(error), repr(error), repr(error.args), repr(getattr(error, "__dict__", {})), repr(error.__reduce__()))
        case dict() | list():
            yield json.dumps(what, ensure_ascii=False, default=repr)
            yield repr(what)
        case _:
            yield from (str(what), repr(what))


def _family(error: BaseException) -> Iterator[BaseException]:
    """An exception, its causes and contexts, suppressed ones too."""
    todo, done = [error], set()
    while todo:
        it = todo.pop()
        if id(it) not in done:
            done.add(id(it))
            yield it
            todo += [other for other in (it.__cause__, it.__context__, *getattr(it, "exceptions", ())) if other is not None]
