"""Signals end the command at once and leave nothing of it behind."""

import asyncio
import json
import os
import signal
import tempfile
from pathlib import Path

import psutil
import pytest

from arlm.testing import Script, ScriptedProvider
from commandline import start

STOP_S = 2.0  # promised to a person who presses Ctrl-C
BATCH = "```repl\nreplies = llm_query_batched([f'question {n}' for n in range(100)])\n```"
BUSY = "```repl\nllm_query('ready')\nwhile True:\n    pass\n```"


class Started:
    """A run of the command in a process of its own, and all that belongs to it."""

    def __init__(self, process, folder):
        self.process = process
        self.folder = folder
        self.below = psutil.Process(process.pid).children(recursive=True)

    async def end(self, *numbers):
        for number in numbers:
            self.process.send_signal(number)
        async with asyncio.timeout(STOP_S):
            out, err = await self.process.communicate()
        return self.process.returncode, out.decode(), err.decode()

    def left(self):
        _, alive = psutil.wait_procs(self.below, timeout=STOP_S)
        return alive, sorted(os.listdir(self.folder))


@pytest.fixture
def folder():
    """A place for temporary files with a short name: sockets live below it."""
    with tempfile.TemporaryDirectory() as folder:
        yield folder


async def started(provider, folder, until, *words):
    process = await start(
        "run", "q", *words, "-m", "openai/scripted", quick=True, OPENAI_BASE_URL=provider.url, OPENAI_API_KEY="sk-scripted", TMPDIR=folder
    )
    await provider.until(until)
    return Started(process, Path(folder))


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
async def test_a_signal_in_a_batch_ends_the_run_and_leaves_nothing(folder, number, code, word):
    async with ScriptedProvider(Script(turns=[BATCH], latency=0.3)) as provider:
        run = await started(provider, folder, lambda stats: stats["in_flight"] == 100)
        assert len(run.below) >= 2
        ended, out, err = await run.end(number)
        await provider.until(lambda stats: stats["in_flight"] == 0)
    assert (ended, out) == (code, "")
    assert run.left() == ([], [])
    assert err.splitlines()[-1].startswith(f"arlm: {word}; used so far: 101 calls, ")
    assert "Traceback" not in err


async def test_further_signals_do_not_disturb_the_clean_up(folder):
    async with ScriptedProvider(Script(turns=[BUSY])) as provider:
        run = await started(provider, folder, lambda stats: (stats["calls"], stats["in_flight"]) == (2, 0))
        ended, _, err = await run.end(signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGINT)
    assert ended in (130, 143)  # signals of one moment have no order
    assert run.left() == ([], [])
    assert "Traceback" not in err


async def test_an_interrupt_with_json_is_an_object_with_the_usage(folder):
    async with ScriptedProvider(Script(turns=[BUSY])) as provider:
        run = await started(provider, folder, lambda stats: (stats["calls"], stats["in_flight"]) == (2, 0), "--json")
        ended, out, _ = await run.end(signal.SIGINT)
    told = json.loads(out)
    assert ended == told["error"]["exit_code"] == 130
    assert told["error"]["type"] == "Interrupted"
    assert told["usage"]["total"]["calls"] == 2


async def test_an_interrupt_while_standard_input_is_read_ends_the_command():
    process = await start("run", "q", "-", "-m", "demo/demo", quick=True, stdin=asyncio.subprocess.PIPE)
    process.stdin.write(b"some text, and more is awaited")
    await process.stdin.drain()
    while not (psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING and handled(process.pid)):
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(STOP_S):
        await process.wait()
    err = (await process.stderr.read()).decode()
    process.stdin.close()
    await process.stdout.read()
    assert process.returncode == 130
    assert err == "arlm: interrupted; used so far: nothing was sent\n"


def handled(pid):
    """Whether the process has come to the point where it has a handler of its own for SIGTERM."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) & 1 << (signal.SIGTERM - 1))
