"""Nobody who is slow holds up a run without end: a guest, the host's own loop, who takes its events, a provider."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import psutil
import pytest

import arlm
from arlm import listeners
from arlm.clients.openai import OpenAILM
from arlm.environments import forkserver
from arlm.events import AnyEvent, RunEnded
from arlm.log import read_log
from arlm.testing.scripted import ScriptedLM

FINAL = "```repl\nanswer.update(content='done', ready=True)\n```"


# -- the guest -------------------------------------------------------------------------------------------------------------


async def test_a_worker_that_stops_reading_its_replies_is_replaced() -> None:
    """It is stopped (SIGSTOP) with 40 MB of replies on their way; its cell's time runs out, and the next cell finds a new worker."""
    server = psutil.Process((await forkserver.current()).process.pid)

    def stopping(_messages: list[arlm.Message]) -> str:
        for worker in server.children():
            worker.suspend()
        return "x" * 1_000_000

    lm = ScriptedLM(["```repl\nkept = 1\nr = llm_query_batched(['x'] * 40)\n```", FINAL], sub=stopping)
    result = await arlm.run("q", context="c", model=lm, cell_timeout=0.5)
    assert result.answer == "done"
    stopped = result.trajectory()["turns"][0]["cells"][0]
    assert stopped["stopped"] == "timeout"
    assert "did not react to the interrupt" in stopped["error"]
    assert stopped["lost"] is not None


# -- the host's loop -------------------------------------------------------------------------------------------------------


async def test_a_loop_that_stands_still_in_mid_run_costs_that_time_and_nothing_else() -> None:
    def block(event: AnyEvent) -> None:
        if event.type in ("cell_started", "subcall_started", "turn_answered", "cell_ended"):
            time.sleep(0.3)  # a user's own function that blocks

    lm = ScriptedLM(["```repl\nprint(llm_query_batched(['a'] * 3))\n```", FINAL], sub="ok")
    result = await arlm.run("q", context="c", model=lm, on_event=block)
    assert result.answer == "done"
    assert result.trajectory()["turns"][0]["cells"][0]["output"] == "['ok', 'ok', 'ok']\n"


# -- who takes the events --------------------------------------------------------------------------------------------------

MANY = "```repl\nprint(len(llm_query_batched([str(n) for n in range(300)])))\n```"


async def test_a_stream_that_nobody_reads_does_not_hold_up_its_run(tmp_path) -> None:
    lm = ScriptedLM([MANY, FINAL], sub="ok")
    async with arlm.stream("q", context="c", model=lm, log_dir=tmp_path) as run:
        with anyio.fail_after(20):
            while lm.left or lm.in_flight or "run_ended" not in types_in(tmp_path):
                await asyncio.sleep(0.005)
        assert [event.type async for event in run][-1] == "run_ended"  # all of them, when it is read at last
        assert run.result.answer == "done"


def types_in(folder) -> list[str]:
    return [event["type"] for path in folder.glob("*.jsonl") for event in read_log(path)]


async def test_an_on_event_that_never_returns_is_cancelled_after_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listeners, "LISTENER_SECONDS", 0.05)
    begun = []

    async def never(event: AnyEvent) -> None:
        begun.append(event)
        await asyncio.Event().wait()

    result = await arlm.run("q", context="c", model=ScriptedLM([MANY, FINAL], sub="ok"), on_event=never)
    assert result.answer == "done"
    assert len(begun) == 1
    assert "on_event did not take all events within 0.05 s" in caplog.text


async def test_an_on_event_that_swallows_its_cancel_leaves_no_task_once_it_returns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listeners, "LISTENER_SECONDS", 0.01)
    monkeypatch.setattr(listeners, "CANCELLED_SECONDS", 0.01)
    before = asyncio.all_tasks()
    release = asyncio.Event()

    async def stubborn(_event: AnyEvent) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    assert (await arlm.run("q", context="c", model=ScriptedLM([FINAL]), on_event=stubborn)).answer == "done"
    assert "on_event goes on after it was cancelled" in caplog.text
    left = asyncio.all_tasks() - before
    assert len(left) == 1
    release.set()
    await asyncio.wait(left, timeout=10)
    assert asyncio.all_tasks() == before


async def test_an_on_event_far_behind_misses_events_and_hears_of_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listeners, "MAX_BEHIND", 50)
    ended = asyncio.Event()
    taken: list[AnyEvent] = []

    async def slow(event: AnyEvent) -> None:
        await ended.wait()
        taken.append(event)

    def watch(event: AnyEvent) -> None:
        if isinstance(event, RunEnded):
            ended.set()

    async with listeners.open_listeners(options(slow), "run", [watch]) as emit:
        await asyncio.sleep(0)
        for call in range(200):
            emit(arlm.events.SubcallStarted(run_id="run", call=call, function="llm_query", model="m", prompt=""))
        emit(RunEnded(run_id="run", answer=None, stop_reason=None, error=None, usage={}, iterations=0, duration_s=0.0))
    assert [event.call for event in taken[:-1]] == list(range(len(taken) - 1))
    assert 50 <= len(taken) <= 52
    assert isinstance(taken[-1], RunEnded)
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert "it gets no more of them until it has caught up" in caplog.text
    assert f"was too slow for {201 - len(taken)} events" in caplog.text


def options(on_event: Callable[[AnyEvent], Awaitable[None]]) -> arlm.options.RunOptions:
    return arlm.options.resolve({"on_event": on_event})


# -- the provider ----------------------------------------------------------------------------------------------------------

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
BODY = b'{"choices": [{"message": {"content": "```repl\\nanswer.update(content=\'done\', ready=True)\\n```"}, "finish_reason": "stop"}]}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)


class Server:
    """A provider that answers each request with ``parts``, and then does not go on."""

    def __init__(self) -> None:
        self.url = ""
        self.parts: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.gone = asyncio.Event()
        self.asked = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            await reader.readuntil(b"\r\n\r\n")
            self.asked.set()
            for part in self.parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            while await reader.read(65536):
                pass  # what is left of the request, then the client's end
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.gone.set()
            writer.close()


@asynccontextmanager
async def serving(*parts: bytes) -> AsyncIterator[Server]:
    server = Server()
    server.parts = list(parts)
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
        yield server
        for writer in server.writers:
            writer.close()
        await server.gone.wait()


async def test_a_reply_that_comes_byte_by_byte_is_a_reply() -> None:
    async with serving(*(bytes([byte]) for byte in HEAD + BODY)) as server:
        result = await arlm.run("q", context="c", model=OpenAILM("m", base_url=server.url, api_key="sk-none"))
        assert result.answer == "done"


STALLS = {"before a byte": (), "in the head": (HEAD[:40],), "after the head": (HEAD,), "in the body": (HEAD, BODY[:20])}


@pytest.mark.parametrize("parts", STALLS.values(), ids=STALLS)
async def test_a_provider_that_stalls_is_a_connection_failed_that_says_after_how_long(parts: tuple[bytes, ...]) -> None:
    async with serving(*parts) as server:
        lm = OpenAILM("m", base_url=server.url, api_key="sk-none", timeout=0.3)
        with pytest.raises(arlm.ConnectionFailed, match=r"no reply from http://127\.0\.0\.1:\d+/v1 within 0\.3 s"):
            await lm.acompletion("x")
        with anyio.fail_after(20):
            await server.gone.wait()  # the call's connection is closed


@pytest.mark.parametrize("parts", STALLS.values(), ids=STALLS)
async def test_a_run_is_cancelled_out_of_a_stalled_call_and_its_connection_closed(parts: tuple[bytes, ...]) -> None:
    async with serving(*parts) as server:
        run = asyncio.create_task(arlm.run("q", context="c", model=OpenAILM("m", base_url=server.url, api_key="sk-none")))
        await server.asked.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        with anyio.fail_after(20):
            await server.gone.wait()


async def test_a_runs_timeout_ends_a_reply_that_drips_without_end() -> None:
    async with serving(HEAD, *(b" " for _ in range(20))) as server:
        with pytest.raises(arlm.RunTimeout):
            await arlm.run("q", context="c", model=OpenAILM("m", base_url=server.url, api_key="sk-none"), timeout=0.3)
        with anyio.fail_after(20):
            await server.gone.wait()
