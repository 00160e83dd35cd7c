"""The broker as a program, spoken to by raw HTTP: what gets through to whom, what gets nothing, and how it ends."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys

import aiohttp
import psutil
import pytest

from arlm.broker import relay as module
from arlm.broker.app import Broker
from arlm.broker.relay import Relay
from arlm.broker.streams import BODY_BYTES, COMMANDS, PACKET_BYTES, PIECE_BYTES, SUPERVISOR, TOKEN, Packet, unpack
from arlm.environments.archive import NAME
from arlm.guest import wire
from arlm.testing import conformance
from arlm.testing.bench import open_bench
from arlm.testing.loopback import LoopbackREPL
from broker_host import TOKEN_DOOR, TOKEN_HOST, begin, call, gone, open_host, run_broker, told
from brokers import served

LONG = 20.0  # seconds; none of these tests takes so long
NO_PACKET = b"no packet at all"


async def chunked(pieces: int):
    for _ in range(pieces):
        yield bytes(1024 * 1024)


def head(method: str, path: str, token: str = TOKEN_HOST, *more: str) -> bytes:
    """Of a request."""
    return "\r\n".join((f"{method} {path} HTTP/1.1", "host: x", f"{TOKEN}: {token}", *more, "", "")).encode()


async def connect(port: int, said: bytes, stack: contextlib.AsyncExitStack) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which this was sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    stack.push_async_callback(hang_up, writer)
    writer.write(said)
    return reader, writer


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def waiting_poll(port: int, asked: bytes, stack: contextlib.AsyncExitStack) -> asyncio.StreamWriter:
    """The connection of a poll that waits in the broker: of two, one has ended the other, and so is there itself."""
    polls = {asyncio.ensure_future(reader.readline()): writer for reader, writer in [await connect(port, asked, stack) for _ in range(2)]}
    await asyncio.wait(polls, return_when=asyncio.FIRST_COMPLETED)
    (newer,) = [poll for poll in polls if not poll.done()]
    newer.add_done_callback(lambda poll: poll.cancelled() or poll.exception())
    return polls[newer]


def spoiled(packet: Packet) -> bytes:
    return packet.pack()[:-1] + b"?"


# -- who gets nothing ------------------------------------------------------------------------------------------------------------------


async def test_requests_that_are_not_the_hosts_get_nothing_and_change_nothing(host):
    await host.open_door()
    hello = await host.poll(LONG)  # the supervisor's answer, not acknowledged
    assert wire.Decoder().feed(hello.pieces[0][1])[0]["hello"] == wire.VERSION
    good = Packet(host.epoch, 1, 3, [(COMMANDS, b'{"shut": "x"}'), (SUPERVISOR, b"\xff" * 9)])
    host_routes = [("GET", "/pending"), ("POST", "/respond"), ("GET", "/health")]
    for method, path in host_routes:
        for token in ("", "wrong", TOKEN_DOOR, TOKEN_HOST[:-1], TOKEN_HOST + "x", TOKEN_HOST.upper(), "é"):
            query = {"epoch": host.epoch, "after": "1", "wait": "30"}
            status, body = await host.ask(method, path, token=token, query=query, data=good.pack() if method == "POST" else None)
            assert (status, json.loads(body)) == (401, {"error": {"type": "Refused", "message": "the token is not valid here"}})
    for token in ("", "wrong", TOKEN_HOST, TOKEN_DOOR[:-1]):
        assert (await host.enqueue(call("x"), token))[0] == 401
    async with host.session.get(host.url + "/pending") as answer:
        assert answer.status == 401
        assert answer.headers.keys().isdisjoint({"server", "date"})
    for method, path in [
        ("GET", "/"),
        ("GET", "/docs"),
        ("GET", "/pending/"),
        ("POST", "/pending"),
        ("GET", "/respond"),
        ("GET", "/enqueue"),
    ]:
        status, body = await host.ask(method, path, token="", allow_redirects=False)
        assert status in (404, 405)
        assert len(body) < 40
    assert await host.poll() == hello
    assert (await host.post(Packet(host.epoch, 0, 3, []))).after == 2  # of the host's pieces: the hello and the door


async def test_malformed_requests_of_the_host_change_nothing(host):
    hello = await host.poll(LONG)
    for query in (
        {"after": "-1"},
        {"after": "x"},
        {"after": "1.0"},
        {"after": "9" * 5000},
        {"wait": "-1"},
        {"wait": "61"},
        {"wait": "nan"},
        {"wait": "inf"},
        {"wait": "soon"},
        {"most": "all"},
    ):
        status, body = await host.ask("GET", "/pending", query={"epoch": host.epoch, **query})
        assert (status, list(json.loads(body))) == (400, ["error"]), query
    whole = Packet(host.epoch, 1, 2, [(SUPERVISOR, b"x"), (COMMANDS, b"y")]).pack()
    for body in (
        b"",
        NO_PACKET,
        b"{}",
        b"\n",
        whole[:-1],
        whole + b"x",
        spoiled(Packet(host.epoch, 1, 2, [(SUPERVISOR, b"x")])),
        os.urandom(1000),
    ):
        assert (await host.ask("POST", "/respond", data=body))[0] == 400
    for data in (bytes(BODY_BYTES + 1), chunked(17)):
        assert (await host.ask("POST", "/respond", data=data))[0] == 413
    assert await host.poll() == hello


async def test_a_body_declared_too_long_is_refused_before_it_is_sent(host):
    async with contextlib.AsyncExitStack() as stack:
        for path, token, status in (("/respond", TOKEN_HOST, b"413"), ("/respond", "wrong", b"401"), ("/enqueue", "wrong", b"401")):
            asked = head("POST", path, token, f"content-length: {BODY_BYTES + 1}")
            reader, _ = await connect(int(host.url.rpartition(":")[2]), asked, stack)
            assert (await reader.readline()).split()[1] == status


@pytest.mark.parametrize("epoch", ["0123456789abcdef", "", "x" * 2000, "\u20ac"])
async def test_what_is_for_another_broker_gets_an_empty_packet_and_changes_nothing(host, epoch):
    hello = await host.poll(LONG)
    taken = await host.post(Packet(epoch, 1, 2, [(SUPERVISOR, b"not a frame"), (COMMANDS, b'{"door": "x", "channel": 2}')]))
    assert taken == Packet(host.epoch, 1, 1, [])
    if epoch:
        assert await host.poll(LONG, epoch=epoch, after=1) == Packet(host.epoch, 1, 1, [])
    else:
        assert await host.poll(LONG, epoch=epoch, after=1) == hello
    assert await host.poll() == hello


@pytest.mark.parametrize("after", [2, 10**18, 10**400])
async def test_a_cursor_that_is_too_high_takes_nothing_away(host, after):
    hello = await host.poll(LONG)
    assert hello.first == 1
    assert await host.poll(after=after) == hello
    assert (await host.post(Packet(host.epoch, after, 2, []))).after == 1
    assert await host.poll() == hello


@pytest.mark.parametrize(
    "command",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"door": 5, "channel": 2}',
        b'{"door": "x"}',
        b'{"door": "x", "channel": 0}',
        b'{"shut": "x"}',
        b"[" * 9999,
        b"\xff",
    ],
)
async def test_a_command_that_is_none_is_passed_over(host, command):
    await host.say(COMMANDS, command)
    await host.open_door()
    asking = asyncio.ensure_future(host.enqueue(call("hello?")))
    assert (await host.hear(2))["token"] == TOKEN_DOOR
    await host.shut_door()
    assert (await asking)[0] == 503


# -- what gets through -----------------------------------------------------------------------------------------------------------------


async def test_nothing_is_taken_away_before_a_later_request_says_that_it_came(host):
    hello = await host.poll(LONG)
    assert [await host.poll() for _ in range(3)] == [hello] * 3
    host.incoming.take(hello)
    await host.tell(SUPERVISOR, {"id": 1, "call": "no such method", "args": {}})  # acknowledges, too
    answer = await host.poll(LONG)
    assert answer.first == 2
    assert wire.Decoder().feed(answer.pieces[0][1])[0]["id"] == 1
    assert (await host.poll(after=1)) == answer
    assert (await host.poll(after=2)).pieces == []


@pytest.mark.parametrize(("most", "pieces"), [("0", 1), ("1000", 2), (str(PACKET_BYTES), 17), ("9" * 30, 17)])
async def test_a_packet_has_no_more_bytes_than_the_host_asks_for(most, pieces):
    relay = Relay(None)
    relay.send(SUPERVISOR, b"x" * 500)
    relay.send(SUPERVISOR, b"x" * 500)
    relay.send(SUPERVISOR, bytes(2 * PACKET_BYTES))
    async with (
        served(Broker(relay, TOKEN_HOST).app) as url,
        aiohttp.ClientSession(headers={TOKEN: TOKEN_HOST}) as session,
        session.get(url + "/pending", params={"most": most}) as answer,
    ):
        assert len(unpack(await answer.read()).pieces) == pieces


async def test_an_answer_names_the_request_that_it_is_of(host):
    packet = Packet(host.epoch, 0, 2, [])
    for method, path, data in (("GET", "/pending", None), ("POST", "/respond", packet.pack())):
        _, body = await host.ask(method, path, query={"asked": "abc", "epoch": host.epoch}, data=data)
        assert b'"asked":"abc"' in body
        _, body = await host.ask(method, path, query={"asked": "a" * 5000, "epoch": host.epoch}, data=data)
        assert b'"asked":"' + b"a" * 100 + b'"' in body


async def test_pieces_that_come_again_are_taken_once(host):
    assert "pid" in await host.hear(SUPERVISOR)
    asks = b"".join(wire.encode({"id": 7, "call": "no such method", "args": {}}))
    packet = Packet(host.epoch, 1, 2, [(SUPERVISOR, asks[:5]), (SUPERVISOR, asks[5:])])
    answers = await asyncio.gather(*[host.post(packet) for _ in range(10)])
    assert {answer.after for answer in answers} == {3}
    longer = Packet(
        host.epoch, 1, 2, [*packet.pieces, (SUPERVISOR, b"".join(wire.encode({"id": 8, "call": "no such method", "args": {}})))]
    )
    assert (await host.post(longer)).after == 4
    assert [(await host.hear(SUPERVISOR))["id"] for _ in range(2)] == [7, 8]
    assert (await host.poll()).pieces == []


async def test_pieces_after_a_gap_are_not_taken(host):
    await host.hear(SUPERVISOR)
    asks = [b"".join(wire.encode({"id": number, "call": "no such method", "args": {}})) for number in (1, 2)]
    assert (await host.post(Packet(host.epoch, 1, 3, [(SUPERVISOR, asks[1])]))).after == 1
    assert (await host.post(Packet(host.epoch, 1, 2, [(SUPERVISOR, asks[0])]))).after == 2
    assert (await host.post(Packet(host.epoch, 1, 3, [(SUPERVISOR, asks[1])]))).after == 3
    assert [(await host.hear(SUPERVISOR))["id"] for _ in range(2)] == [1, 2]


async def test_a_newer_poll_ends_an_older_one_which_is_given_nothing(host):
    await host.hear(SUPERVISOR)
    current = asyncio.ensure_future(host.poll(LONG))
    ended: list[Packet] = []
    for _ in range(5):
        polls = {current, asyncio.ensure_future(host.poll(LONG))}  # on two connections: either may come first
        done, (current,) = await asyncio.wait(polls, return_when=asyncio.FIRST_COMPLETED)
        ended += [poll.result() for poll in done]
    await host.tell(SUPERVISOR, {"id": 1, "call": "no such method", "args": {}})
    last = await current
    assert wire.Decoder().feed(last.pieces[0][1])[0]["id"] == 1
    assert all((poll.pieces, poll.first) == ([], 1) for poll in ended)  # no gap for whoever takes it for news


async def test_polls_that_come_in_one_turn_end_each_other():
    relay = Relay(None)
    polls = [asyncio.ensure_future(relay.pending(relay.epoch, 0, LONG)) for _ in range(5)]
    async with asyncio.timeout(LONG / 2):
        assert {packet.first for packet in await asyncio.gather(*polls[:-1])} == {1}
    relay.send(SUPERVISOR, b"data")
    assert (await polls[-1]).pieces == [(SUPERVISOR, b"data")]


async def test_a_poll_whose_client_went_away_loses_nothing(broker, host):
    await host.hear(SUPERVISOR)
    async with contextlib.AsyncExitStack() as stack:
        polling = await waiting_poll(broker.port, head("GET", f"/pending?epoch={host.epoch}&after=1&wait=30"), stack)
        polling.transport.abort()
    await host.tell(SUPERVISOR, {"id": 1, "call": "no such method", "args": {}})
    assert (await host.hear(SUPERVISOR))["id"] == 1


async def test_health_is_for_the_host(host):
    status, body = await host.ask("GET", "/health")
    assert (status, json.loads(body)) == (200, {"ok": True, "epoch": host.epoch})


# -- memory ----------------------------------------------------------------------------------------------------------------------------

TALKER = """
import os, sys, threading
said = 0
def count():
    for line in sys.stdin:
        sys.stderr.write(f"{said}\\n"); sys.stderr.flush()
threading.Thread(target=count, daemon=True).start()
while said < %d:
    said += os.write(1, bytes([said // 65536 %% 251]) * 65536)
"""


@contextlib.asynccontextmanager
async def standing_in(code: str):
    """A relay whose supervisor is another program."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-c", code, stdin=pipe, stdout=pipe, stderr=pipe, limit=65536)
    relay = Relay(process)
    reading = asyncio.ensure_future(relay.read_supervisor())
    try:
        yield relay, process
    finally:
        reading.cancel()
        await asyncio.wait({reading})
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_a_supervisor_that_says_a_lot_while_nobody_polls_is_held_back_and_goes_on_afterwards(monkeypatch):
    monkeypatch.setattr(module, "HELD_BYTES", 1024 * 1024)
    monkeypatch.setattr(module, "READ_BYTES", 64 * 1024)
    size = 6 * 1024 * 1024
    async with standing_in(TALKER % size) as (relay, process):
        while not relay._outgoing.size >= module.HELD_BYTES:
            await relay.pending(relay.epoch, 0, LONG)
            await asyncio.sleep(0)
        counts = [0, 1]
        while counts[-1] != counts[-2]:  # it stands still
            process.stdin.write(b"how much?\n")
            counts.append(int(await process.stderr.readline()))
            await asyncio.sleep(0.05)
        assert counts[-1] < size / 2
        assert relay._outgoing.size < module.HELD_BYTES + module.READ_BYTES + PIECE_BYTES
        heard, after = b"", 0
        while len(heard) < size:
            packet = await relay.pending(relay.epoch, after, LONG)
            heard += b"".join(data for channel, data in packet.pieces if channel == SUPERVISOR)
            after += len(packet.pieces)
        assert heard == b"".join(bytes([block % 251]) * 65536 for block in range(size // 65536))


async def test_what_a_supervisor_does_not_read_is_refused_and_not_taken(monkeypatch):
    monkeypatch.setattr(module, "TAKE_SECONDS", 0.1)
    async with standing_in("import time; time.sleep(600)") as (relay, process):
        packet = Packet(relay.epoch, 0, 1, [(SUPERVISOR, bytes(4 * 1024 * 1024))])
        assert (await relay.respond(packet)).after == 1
        more = Packet(relay.epoch, 0, 2, [(SUPERVISOR, b"more"), (COMMANDS, b"{}")])
        refused = await asyncio.gather(*[relay.respond(more) for _ in range(5)], return_exceptions=True)
        assert {type(it) for it in refused} == {module.Refused}
        assert (await relay.pending("", 0, 0)).after == 1
        process.kill()
        assert (await relay.respond(more)).after == 3
        assert (await relay.pending(relay.epoch, 0, LONG)).pieces == [(COMMANDS, b'{"ended": -9}')]


# -- slow and many ---------------------------------------------------------------------------------------------------------------------


async def test_clients_that_are_slow_or_silent_do_not_stop_others(broker, host):
    await host.hear(SUPERVISOR)
    await host.open_door()
    asks = head("POST", "/enqueue", TOKEN_DOOR)[:-2]
    starts = [
        b"",
        b"P",
        asks,
        asks + b"content-length: 1000\r\n\r\n{",
        asks + b"transfer-encoding: chunked\r\n\r\n5\r\n{",
        b"\xff\x00\r\n" * 10,
    ]
    async with contextlib.AsyncExitStack() as stack:
        for number in range(300):
            await connect(broker.port, starts[number % len(starts)], stack)
        asking = asyncio.ensure_future(host.enqueue(call("hello?")))
        assert "hello" in await host.hear(2)
        assert (await host.hear(2))["args"] == {"prompt": "hello?"}
        await host.tell(2, {"id": 1, "ok": {"text": "yes"}})
        assert json.loads((await asking)[1]) == {"ok": {"text": "yes"}}


IMPATIENT = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
import arlm.broker.connections
arlm.broker.connections.LOOK_SECONDS = 0.1
sys.argv[0] = sys.argv[1]
runpy.run_path(sys.argv[1], run_name="__main__")
"""


async def test_connections_that_begin_nothing_are_closed(tmp_path):
    """A first request that never comes, a head that never ends, a body that goes on after its answer; but not a poll that waits."""
    flags = ("-I", "-c", IMPATIENT)
    with run_broker(tmp_path, flags=flags) as program:
        async with contextlib.AsyncExitStack() as stack:
            polling, _ = await connect(program.port, head("GET", "/pending?wait=1"), stack)
            silent, _ = await connect(program.port, b"", stack)
            half, _ = await connect(program.port, b"GET /health HTTP/1.1\r\nx: ", stack)
            late, writer = await connect(program.port, head("POST", "/respond", "wrong", "transfer-encoding: chunked"), stack)
            assert (await late.readline()).split()[1] == b"401"
            writer.write(b"5\r\nhello\r\n")
            for reader in (silent, half, late):
                with contextlib.suppress(ConnectionError):
                    await reader.read()
            assert (await polling.readline()).split()[1] == b"200"


FEW_FILES = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
sys.argv[0] = sys.argv[1]
runpy.run_path(sys.argv[1], run_name="__main__")
"""


async def test_connections_in_excess_cost_the_oldest_that_asks_for_nothing(tmp_path):
    with run_broker(tmp_path, flags=("-I", "-c", FEW_FILES)) as program:
        async with contextlib.AsyncExitStack() as stack:
            host = await stack.enter_async_context(open_host(program))
            await host.meet()
            await host.hear(SUPERVISOR)
            polling = asyncio.ensure_future(host.poll(LONG))
            silent = [await connect(program.port, b"", stack) for _ in range(200)]
            assert await silent[0][0].read() == b""
            await host.tell(SUPERVISOR, {"id": 1, "call": "no such method", "args": {}})
            assert (await polling).pieces
            await host.open_door()
            crowd = [asyncio.ensure_future(host.enqueue(call("x"))) for _ in range(80)]
            for expected in ["hello", *["id"] * 18]:
                assert expected in await host.hear(2)  # half of the connections, so that the host has some
            for number in range(1, 19):
                await host.tell(2, {"id": number, "ok": number})
            answers = await asyncio.gather(*crowd, return_exceptions=True)
            assert [it[0] for it in answers if isinstance(it, tuple)].count(200) == 18


SEALED = """
import atexit, ctypes, runpy, sys
atexit.register(lambda: open(sys.argv[1] + ".sealed", "w").write(str(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))))
sys.argv[0] = sys.argv[1]
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_its_memory_is_closed_to_cells_of_the_same_user(tmp_path):
    with run_broker(tmp_path, flags=("-I", "-c", SEALED)):
        pass
    assert (tmp_path / f"{NAME}.sealed").read_text() == "0"


# -- its beginning and its end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"garbage\n",
        b"\xff\xfe\x00\n",
        b"[]\n",
        b"{}\n",
        b"[" * 50_000 + b"\n",
        b'{"token": "0123456789abcdef", "port": 0}\n',
        b'{"token": "", "port": 0, "folder": "/x"}\n',
        b'{"token": "short", "port": 0, "folder": "/x"}\n',
        b'{"token": ["0123456789abcdef"], "port": 0, "folder": "/x"}\n',
        b'{"token": "0123456789abcdef", "port": "http", "folder": "/x"}\n',
        b'{"token": "0123456789abcdef", "port": 70000, "folder": "/x"}\n',
        b'{"token": "0123456789abcdef", "port": 0, "folder": "x"}\n',
        b'{"token": "0123456789abcdef", "port": 0, "folder": "/x", "idle_seconds": 0}\n',
        b'{"token": "0123456789abcdef", "port": 0, "folder": "/x", "idle_seconds": NaN}\n',
        b'{"token": "0123456789abcdef", "port": 0, "folder": "/x", "idle": 5}\n',
        b'{"token": "0123456789abcdef", "port": 0, "folder": "/proc/nowhere"}\n',
        b'{"token": "0123456789abcdef", "port": 0, "folder": "/x", "host": "192.0.2.1"}\n',
    ],
    ids=lambda line: line[:70].decode("ascii", "replace").strip() or "nothing",
)
def test_told_something_else_it_says_in_words_what_is_wrong(tmp_path, line):
    with begin(tmp_path, error=subprocess.PIPE) as process:
        said, why = process.communicate(line)
    assert process.returncode == 1
    assert said == b""
    assert why.startswith(b"arlm's broker ")
    assert why.count(b"\n") == 1
    assert b"0123456789abcdef" not in why


def test_a_port_in_use_is_said_in_words(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with begin(tmp_path, error=subprocess.PIPE) as process:
            said, why = process.communicate(told(tmp_path, port=port))
    assert (process.returncode, said) == (1, b"")
    assert why.decode() == f"arlm's broker cannot run: it cannot listen at 127.0.0.1:{port}: Address already in use\n"


async def test_sigterm_ends_it_after_the_supervisor_in_the_middle_of_requests(broker, host):
    pid = (await host.hear(SUPERVISOR))["pid"]
    await host.open_door()
    asking = asyncio.ensure_future(host.enqueue(call("nobody answers")))
    await host.hear(2)
    await host.hear(2)
    polling = asyncio.ensure_future(host.poll(LONG))
    broker.process.terminate()
    assert await asyncio.to_thread(broker.process.wait, LONG) == 0
    assert not psutil.pid_exists(pid)
    await asyncio.wait({asking, polling})
    assert asking.exception() is not None or asking.result()[0] != 200
    polling.exception()


async def knock(host) -> None:
    while True:
        assert (await host.ask("GET", "/pending", token="wrong"))[0] == 401


async def test_it_ends_by_itself_when_the_host_is_silent_whoever_else_knocks(tmp_path):
    with run_broker(tmp_path, idle_seconds=0.5) as program:
        below = program.below()
        assert below
        async with open_host(program) as host:
            await host.meet()
            await host.open_door()
            asking = asyncio.ensure_future(host.enqueue(call("anybody?")))
            assert (await host.poll(2.0, after=1)).epoch == host.epoch  # longer than it would be silent
            knocks = asyncio.ensure_future(knock(host))
            assert isinstance((await asyncio.wait({knocks}))[0].pop().exception(), OSError)
            await asyncio.wait({asking})
            asking.exception()
        assert program.process.wait(LONG) == 0
        assert gone(below)


async def test_a_poll_keeps_it_alive_for_as_long_as_it_waits(tmp_path):
    with run_broker(tmp_path, idle_seconds=0.3) as program:
        async with open_host(program) as host:
            await host.meet()
            await host.hear(SUPERVISOR)
            assert (await host.poll(1.5)).pieces == []
            assert (await host.poll()).epoch == host.epoch
        assert program.process.wait(LONG) == 0


async def test_a_poll_whose_client_went_away_does_not_keep_it_alive(tmp_path):
    with run_broker(tmp_path, idle_seconds=0.5) as program:
        async with contextlib.AsyncExitStack() as stack:
            host = await stack.enter_async_context(open_host(program))
            await host.meet()
            await host.hear(SUPERVISOR)
            polling = await waiting_poll(program.port, head("GET", f"/pending?epoch={host.epoch}&after=1&wait=60"), stack)
            polling.transport.abort()
        assert await asyncio.to_thread(program.process.wait, LONG) == 0


async def test_the_host_is_told_when_the_supervisor_ends(host):
    pid = (await host.hear(SUPERVISOR))["pid"]
    os.kill(pid, signal.SIGKILL)
    assert await host.hear(COMMANDS) == {"ended": -9}
    await host.tell(SUPERVISOR, {"id": 1, "call": "spawn", "args": {}})  # harmless: nobody is there
    assert (await host.ask("GET", "/health"))[0] == 200


CELL = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(os.getpid(), child.pid)
"""


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
async def test_supervisor_workers_and_what_they_started_end_with_it(signal_number):
    environment = LoopbackREPL()
    subject = conformance.Subject(name="loopback", environment=lambda: environment, alive=conformance.alive_here)
    async with open_bench(subject) as bench:
        pids = [int(pid) for pid in (await bench.out(CELL)).split()]
        broker = environment.made[0].process
        below = psutil.Process(broker.pid).children(recursive=True)
        assert {it.pid for it in below} >= {*pids}
        broker.send_signal(signal_number)
        for process in below:
            await bench.gone(process.pid)


def test_a_broker_says_nothing_of_the_garbage_that_it_is_sent(tmp_path):
    """What is written to a pipe that nobody reads would stop it."""
    with begin(tmp_path, error=subprocess.PIPE) as process:
        process.stdin.write(told(tmp_path))
        process.stdin.flush()
        port = json.loads(process.stdout.readline())["port"]
        for _ in range(100):
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.sendall(b"\x00 no HTTP\r\n\r\n")
                while sock.recv(1000):
                    pass
        process.terminate()
        said, why = process.communicate()
    assert (process.returncode, said, why) == (0, b"", b"")


FAULTY = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
import arlm.broker.app
async def fails(self, request): raise LookupError("a mistake of ours " + "\u00fc" * 9999)
arlm.broker.app.Broker._health = fails
sys.argv[0] = sys.argv[1]
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def test_a_broker_with_a_fault_says_little_of_it_and_answers_on(tmp_path):
    with begin(tmp_path, flags=("-I", "-c", FAULTY), error=subprocess.PIPE) as process:
        process.stdin.write(told(tmp_path))
        process.stdin.flush()
        port = json.loads(process.stdout.readline())["port"]
        for _ in range(100):
            with socket.create_connection(("127.0.0.1", port), LONG) as sock:
                sock.sendall(head("GET", "/health"))
                assert sock.recv(1000).split()[1] == b"500"
        process.terminate()
        _, why = process.communicate()
    assert process.returncode == 0
    assert 1000 < len(why) < 60_000
