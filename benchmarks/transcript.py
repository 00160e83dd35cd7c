"""One run of `arlm run` over a text file of megabytes, against an OpenAI-compatible server in a process of its own: what a person sees.

    python benchmarks/transcript.py                        prints the transcript
    python benchmarks/transcript.py --write docs/transcript.md

The file is a made-up log book in which a few incidents stand among thousands of quiet entries. The server plays the root model from a
script and answers the sub-calls that read an incident with what it says there: the answer can only come out right when every piece of
the file has travelled through the REPL and a sub-call, unchanged. The protocol, the sockets, the processes and arlm are the real thing;
the models are not.
"""

import argparse
import asyncio
import os
import random
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from arlm.testing import start_provider

ENTRIES = 60_000
LATENCY_S = 0.4
STATIONS = ("Brevik", "Halden", "Larvik", "Moss", "Risør", "Skien", "Tønsberg")
QUIET = (
    "the pumps ran without a break and the gauges stood where they should",
    "rain until noon, the yard was swept and the gate was painted",
    "two deliveries, one of them for the station on the other shore",
    "the generator was started for a quarter of an hour, as every week",
    "nobody came by, and the radio spoke of fog",
)
QUESTION = "Which stations had an incident, and when? One line each."
COMMAND = ("run", QUESTION, "logbook.txt", "--model", "openai/scripted-model")
TURNS = (
    "I look at the log book first.\n```repl\nprint(type(context), len(context))\nprint(context[:300])\n```",
    "It is one entry a line. I cut it into 480 pieces at line ends and let a model read each of them.\n```repl\n"
    "lines = context.splitlines()\n"
    "size = -(-len(lines) // 480)\n"
    "pieces = ['\\n'.join(lines[at:at + size]) for at in range(0, len(lines), size)]\n"
    "ask = 'List every incident in these entries as STATION DAY, one a line. Write none if there is none.\\n\\n'\n"
    "replies = llm_query_batched([ask + piece for piece in pieces])\n"
    "print(len(pieces), 'pieces,', sum(reply.failed for reply in replies), 'failed')\n```",
    "I collect what was found and check that no reply is something else.\n```repl\n"
    "found = sorted({line for reply in replies for line in reply.splitlines() if line != 'none'})\n"
    "odd = [reply for reply in replies if reply.failed]\n"
    "print(len(found), 'incidents;', len(odd), 'odd replies')\nprint(found[:3])\n```",
    "All pieces were read.\n```repl\nanswer['content'] = '\\n'.join(found)\nanswer['ready'] = True\n```",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogBook:
    """The input, the server's script for it, and what must come out."""

    text: str
    script: dict
    answer: str


def log_book(entries: int = ENTRIES, seed: int = 11) -> LogBook:
    """A log book of about 100 characters an entry. The same seed, the same book."""
    chance = random.Random(seed)
    lines = [
        f"day {number // 60:04d}, entry {number % 60:02d}, {chance.choice(STATIONS)}: {chance.choice(QUIET)}." for number in range(entries)
    ]
    rules, found = [], []
    for number in sorted(chance.sample(range(entries), 12)):
        station, day, entry = chance.choice(STATIONS), number // 60, number % 60
        lines[number] = f"day {day:04d}, entry {entry:02d}, {station}: the valve of tank {number % 7} gave way, the hall was under water."
        found.append(f"{station} day {day:04d}")
        rules.append({"contains": lines[number], "text": found[-1]})
    script = {"turns": list(TURNS), "rules": rules, "sub": {"text": "none"}, "latency": LATENCY_S, "cost": 0.00002}
    return LogBook(text="\n".join(lines), script=script, answer="\n".join(sorted(set(found))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What came of the command, and what the server counted."""

    code: int
    out: str
    err: str
    stats: dict


async def perform(book: LogBook, folder: Path, *words: str) -> Seen:
    """Write the book into ``folder``, start the server, run the command there."""
    (folder / "logbook.txt").write_text(book.text, "utf-8")
    async with start_provider(book.script) as provider:
        environment = {**os.environ, "OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "sk-scripted", "COLUMNS": "120", "NO_COLOR": "1"}
        process = await asyncio.create_subprocess_exec(
            str(Path(sysconfig.get_path("scripts")) / "arlm"),
            *COMMAND,
            *words,
            cwd=folder,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return Seen(code=process.returncode or 0, out=out.decode(), err=err.decode(), stats=await provider.stats())


def document(book: LogBook, seen: Seen) -> str:
    """The transcript as a page."""
    command = f'arlm run "{QUESTION}" logbook.txt --model openai/scripted-model --verbose'
    stats = seen.stats
    return f"""\
# A transcript

What `arlm run` shows, over a log book of {len(book.text):,} characters, against an OpenAI-compatible server in a process of its own on
loopback: the real protocol over real sockets, through the official SDK. The server plays a script; it is not a language model.
`python benchmarks/transcript.py --write docs/transcript.md` does it again.

```console
$ export OPENAI_BASE_URL=http://127.0.0.1:…/v1 OPENAI_API_KEY=…
$ {command}
```

On standard error:

```text
{seen.err.rstrip()}
```

On standard output, and exit code {seen.code}:

```text
{seen.out.rstrip()}
```

The answer is {"right" if seen.out.rstrip() == book.answer else "WRONG"}. What the server counted, each call after {LATENCY_S} s:

| | |
|---|---|
| calls of the root model | {stats["root_calls"]} |
| sub-calls | {stats["sub_calls"]} |
| most calls in flight at once | {stats["max_in_flight"]} |
| connections | {stats["connections"]} |
| tokens in, out | {stats["prompt_tokens"]:,}, {stats["completion_tokens"]:,} |
"""


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there instead of printing it")
    options = parser.parse_args()
    book = log_book()
    with tempfile.TemporaryDirectory() as folder:
        seen = asyncio.run(perform(book, Path(folder), "--verbose"))
    page = document(book, seen)
    if options.write:
        options.write.write_text(page, "utf-8")
    else:
        print(page)
    return 0 if seen.code == 0 and seen.out.rstrip() == book.answer else 1


if __name__ == "__main__":
    sys.exit(main())
