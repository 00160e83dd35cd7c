"""The escape corpus over `process`, confined and open: by family, and one row a payload. Exit status 1 if a confined payload escaped.

Prints Markdown; with `--write` it takes its place at the end of docs/security.md.
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
import sys
from pathlib import Path

from arlm.environments import forkserver
from arlm.environments.process import ProcessREPL
from arlm.guest.confine import grade, landlock_version
from arlm.testing import payloads
from arlm.testing.conformance import Subject
from arlm.testing.escapes import attempt, open_targets
from arlm.testing.payloads import CORPUS, Escape

SUBJECTS = [
    Subject(name="confined", environment=lambda: ProcessREPL(confine="require")),
    Subject(name="open", environment=lambda: ProcessREPL(confine="off")),
]
FAMILIES = {
    "read what is not its own: keys, files, memory, other runs": payloads.READING,
    "reach the network, other programs, other runs' sockets": payloads.REACHING,
    "harm processes, files, the system": payloads.HARMING,
    "change modes, times, owners, attributes of files": payloads.METADATA,
    "make what outlives a run or slows the machine down": payloads.KERNEL_OBJECTS,
}
PAGE = Path(__file__).parents[1] / "docs" / "security.md"
MARK = "<!-- corpus -->\n"
Results = dict[str, dict[str, str | None]]  # payload, subject: how it escaped


async def attempts() -> Results:
    """Run every payload over every subject."""
    results: Results = {}
    async with open_targets() as targets:
        for escape in CORPUS:
            row = results[escape.name] = {}
            for subject in SUBJECTS:
                supervisor = (await forkserver.current()).process.pid
                row[subject.name] = await attempt(subject, escape, targets, supervisor=supervisor)
    return results


def report(results: Results) -> str:
    """Both tables."""
    names = [subject.name for subject in SUBJECTS]
    user = "root" if os.getuid() == 0 else "a user who is not root"
    parts = ", ".join(name if there else f"no {name}" for name, there in grade().items())
    lines = [
        f"Linux {'.'.join(platform.release().split('.')[:2])}, {platform.machine()}, as {user}; Landlock {landlock_version()}; {parts}."
    ]
    lines += ["", f"| family | payloads | {' | '.join(f'escaped, {name}' for name in names)} |", "|---|---|---|---|"]
    lines += [_row(family, payloads, results, names) for family, payloads in FAMILIES.items()]
    lines += [_row("all", CORPUS, results, names), "", f"| payload | proof | {' | '.join(names)} |", "|---|---|---|---|"]
    lines += [f"| {it.name} | {it.proof} | {' | '.join(_words(results[it.name][name]) for name in names)} |" for it in CORPUS]
    return "\n".join(lines) + "\n"


def _row(family: str, payloads: tuple[Escape, ...], results: Results, names: list[str]) -> str:
    counts = [sum(results[it.name][name] is not None for it in payloads) for name in names]
    return f"| {family} | {len(payloads)} | {' | '.join(str(count) for count in counts)} |"


def _words(escaped: str | None) -> str:
    """What a payload got, without what it read: that is this machine's own."""
    if escaped is None:
        return "refused"
    return f"**{re.sub(r'^it returned (?!True$|[0-9]+$|.nothing would).*', 'it returned what it found', escaped, flags=re.DOTALL)}**"


def main() -> int:
    results = asyncio.run(attempts())
    text = report(results)
    if "--write" in sys.argv:
        before, mark, _ = PAGE.read_text("utf-8").partition(MARK)
        PAGE.write_text(before + mark + text, "utf-8")
    else:
        print(text, end="")
    return int(any(row["confined"] is not None for row in results.values()))


if __name__ == "__main__":
    sys.exit(main())
