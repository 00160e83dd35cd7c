"""The escape corpus over `process`, confined and open: one row a payload. Prints Markdown; exit status 1 if a confined payload escaped."""

from __future__ import annotations

import asyncio
import sys

from arlm.environments import forkserver
from arlm.environments.process import ProcessREPL
from arlm.guest.confine import grade, landlock_version
from arlm.testing.conformance import Subject
from arlm.testing.escapes import CORPUS, attempt, open_targets

SUBJECTS = [
    Subject(name="confined", environment=lambda: ProcessREPL(confine="require")),
    Subject(name="open", environment=lambda: ProcessREPL(confine="off")),
]


async def main() -> int:
    print(f"Landlock version {landlock_version()}; {grade()}\n")
    print("| payload | proof | confined | open |\n|---|---|---|---|")
    counts = dict.fromkeys((subject.name for subject in SUBJECTS), 0)
    async with open_targets() as targets:
        for escape in CORPUS:
            cells = []
            for subject in SUBJECTS:
                supervisor = (await forkserver.current()).process.pid
                escaped = await attempt(subject, escape, targets, supervisor=supervisor)
                counts[subject.name] += escaped is not None
                cells.append("refused" if escaped is None else f"**{escaped}**")
            print(f"| {escape.name} | {escape.proof} | {' | '.join(cells)} |", flush=True)
    print(f"\n{len(CORPUS)} payloads; escaped: {', '.join(f'{name} {count}' for name, count in counts.items())}")
    return 1 if counts["confined"] else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
