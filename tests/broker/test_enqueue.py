"""``/enqueue``: what programs that are no worker may ask, and that none of them harms another, the broker or the host."""

import asyncio
import contextlib
import itertools
import json
import re
import shutil
from pathlib import Path

import aiohttp
import pytest

import arlm
from arlm.broker import relay as module
from arlm.broker.app import Broker
from arlm.broker.relay import Busy, Refused, Relay
from arlm.broker.streams import BODY_BYTES, TOKEN, Packet
from arlm.environments import brokered
from arlm.guest import wire
from arlm.server import peer
from arlm.testing import conformance
from arlm.testing.bench import open_bench
from arlm.testing.gateway import open_gateway
from arlm.testing.gateway_faults import AnswerInstead, only
from arlm.testing.loopback import LoopbackREPL
from broker_host import TOKEN_DOOR, TOKEN_HOST, call
from brokers import loopback, served
from programs import ProgramLM, final

DOOR, OTHER = 2, 3  # channels
TOKEN_OTHER = "the-token-of-another-door-in-tests"
DOCUMENT = (Path(__file__).parents[2] / "docs" / "broker.md").read_text("utf-8")


async def opened(host) -> None:
    """A door whose connection has been greeted by the host."""
    await host.open_door()
    first = asyncio.ensure_future(host.enqueue(call("first")))
    assert await host.hear(DOOR) == {"hello": wire.VERSION, "token": TOKEN_DOOR}
    await host.tell(DOOR, {"hello": wire.VERSION, "functions": []})
    number = (await host.hear(DOOR))["id"]
    await host.tell(DOOR, {"id": number, "ok": {"text": "1st"}})
    assert await first == (200, b'{"ok": {"text": "1st"}}')


# -- answers ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        {"ok": {"text": "yes"}},
        {"ok": None},
        {"ok": [1, 2.5, {"a": False}]},
        {"ok": {"text": "lone \ud800, \x00, \U0001f600 and \u2028"}},
        {"error": {"type": "TypeError", "message": "llm_query() takes model, prompt"}},
    ],
    ids=str,
)
async def test_the_hosts_answer_is_the_answer(host, answer):
    await opened(host)
    asking = asyncio.ensure_future(host.enqueue(call("lone \udfff?")))
    asked = await host.hear(DOOR)
    assert asked == {"id": 2, "call": "llm_query", "args": {"prompt": "lone \udfff?"}}
    await host.tell(DOOR, {"id": 2, **answer})
    status, body = await asking
    assert (status, json.loads(body)) == (200, answer)
    assert body.isascii()


async def test_answers_come_in_any_order_to_those_who_asked(host):
    """500 in flight, with two tokens that use the same numbers."""
    await host.open_door()
    await host.open_door(TOKEN_OTHER, OTHER)
    asking = [asyncio.ensure_future(host.enqueue(call(f"{n}"), (TOKEN_DOOR, TOKEN_OTHER)[n % 2])) for n in range(500)]
    asked: list[tuple[int, int, str]] = []
    for channel in (DOOR, OTHER):
        assert "hello" in await host.hear(channel)
        for _ in range(250):
            message = await host.hear(channel)
            asked.append((channel, message["id"], message["args"]["prompt"]))
    assert len({(channel, number) for channel, number, _ in asked}) == 500
    for channel, number, prompt in reversed(asked):
        host.outgoing.put(channel, b"".join(wire.encode({"id": number, "ok": {"text": f"of {prompt}"}})))
    await host.flush()
    for n, (status, body) in enumerate(await asyncio.gather(*asking)):
        assert (status, json.loads(body)) == (200, {"ok": {"text": f"of {n}"}})


async def test_large_prompts_and_answers_get_through_whole(host):
    await opened(host)
    prompt = "é" * (5 * 1024 * 1024)
    asking = asyncio.ensure_future(host.enqueue(json.dumps(call(prompt), ensure_ascii=False).encode()))
    asked = await host.hear(DOOR)
    assert asked["args"]["prompt"] == prompt
    await host.tell(DOOR, {"id": asked["id"], "ok": {"text": prompt}})
    status, body = await asking
    assert (status, json.loads(body)) == (200, {"ok": {"text": prompt}})


# -- hostile callers -------------------------------------------------------------------------------------------------------------------

WRONG = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"call"',
    b"{}",
    b'{"call": null}',
    b'{"call": 7, "args": {}}',
    b'{"call": ["llm_query"], "args": {}}',
    b'{"call": "llm_query", "args": []}',
    b'{"call": "llm_query", "args": null}',
    b'{"args": {}}',
    b"\xff\xfe\xfd",
    b"[" * 1_000_000,
    b'{"call": "x", "args": {"a": ' + b"[" * 500 + b"]" * 500 + b"}}",  # a host of another Python might not read it: the door's end
    b'{"call": "x", "args": {"a": ' + b'{"a":' * 499 + b"[]" + b"}" * 499 + b"}}",
    b'{"call": "x", "args": {"a": ' + b"9" * 10_000 + b"}}",
]


async def test_requests_of_wrong_shapes_are_refused_and_the_host_hears_nothing_of_them(host):
    await opened(host)
    for body in WRONG:
        status, said = await host.enqueue(body)
        assert (status, json.loads(said)["error"]["type"]) == (400, "Refused"), body[:50]
    for data in (bytes(BODY_BYTES + 1), b" " * (BODY_BYTES + 1)):
        assert (await host.enqueue(data))[0] == 413
    assert [data for channel, data in (await host.poll()).pieces if channel == DOOR] == []


async def test_names_and_arguments_of_any_kind_reach_the_host_as_they_are(host):
    await opened(host)
    number = 1
    for method, args in [
        ("", {}),
        ("x" * 100_000, {}),
        ("__class__", {"self": 1}),
        ("hello", {"id": 1, "token": "x"}),
        ("llm_query", {"": [{}] * 9}),
        ("llm_query", {"nested": json.loads("[" * 499 + "]" * 499)}),
    ]:
        asking = asyncio.ensure_future(host.enqueue({"call": method, "args": args, "id": 1, "cancel": 1, "hello": 5}))
        number += 1
        assert await host.hear(DOOR) == {"id": number, "call": method, "args": args}
        await host.tell(DOOR, {"id": number, "error": {"type": "LookupError", "message": "no"}})
        assert (await asking)[0] == 200


async def test_who_goes_away_has_the_hosts_call_cancelled_and_nobody_elses(host):
    await opened(host)
    asking = [asyncio.ensure_future(host.enqueue(call(name))) for name in ("stays", "goes")]
    numbers = {}
    for _ in asking:
        message = await host.hear(DOOR)
        numbers[message["args"]["prompt"]] = message["id"]
    asking[1].cancel()
    assert await host.hear(DOOR) == {"cancel": numbers["goes"]}
    await host.tell(DOOR, {"id": numbers["goes"], "ok": "late"})  # harms nobody
    await host.tell(DOOR, {"id": numbers["stays"], "ok": "in time"})
    assert await asking[0] == (200, b'{"ok": "in time"}')


async def test_a_token_is_worth_nothing_when_its_repl_is_over(host):
    await opened(host)
    await host.open_door(TOKEN_OTHER, OTHER)
    asking = asyncio.ensure_future(host.enqueue(call("too late")))
    await host.hear(DOOR)
    await host.shut_door()
    status, body = await asking
    assert (status, json.loads(body)["error"]["message"]) == (503, "the REPL that this token belonged to is over")
    assert (await host.enqueue(call("again")))[0] == 401
    await host.shut_door()
    other = asyncio.ensure_future(host.enqueue(call("another's"), TOKEN_OTHER))
    assert "hello" in await host.hear(OTHER)
    await host.hear(OTHER)
    await host.tell(OTHER, {"bye": "this host has no more of it"})
    status, body = await other
    assert (status, json.loads(body)["error"]["message"]) == (503, "this host has no more of it")
    assert (await host.enqueue(call("again"), TOKEN_OTHER))[0] == 503


async def test_a_second_door_of_the_same_token_or_channel_takes_nothing_from_the_first(host):
    await opened(host)
    asking = asyncio.ensure_future(host.enqueue(call("mine")))
    number = (await host.hear(DOOR))["id"]
    await host.open_door(TOKEN_DOOR, OTHER)
    await host.open_door(TOKEN_OTHER, DOOR)
    await host.tell(DOOR, {"id": number, "ok": "yours"})
    assert await asking == (200, b'{"ok": "yours"}')
    assert (await host.enqueue(call("x"), TOKEN_OTHER))[0] == 401


async def test_a_caller_learns_nothing_of_others(host):
    """It has neither the host's routes nor, by whatever it sends, anybody's answers."""
    await opened(host)
    await host.open_door(TOKEN_OTHER, OTHER)
    secret = asyncio.ensure_future(host.enqueue(call("the secret question"), TOKEN_OTHER))
    assert "hello" in await host.hear(OTHER)
    number = (await host.hear(OTHER))["id"]
    seen = b""
    for method, path in (("GET", "/pending"), ("GET", "/health"), ("POST", "/respond")):
        status, body = await host.ask(
            method, path, token=TOKEN_DOOR, data=Packet(host.epoch, 0, 1, []).pack() if method == "POST" else None
        )
        assert status == 401
        seen += body
    asking = asyncio.ensure_future(host.enqueue({"call": "x", "args": {"id": number, "channel": OTHER}}))
    mine = (await host.hear(DOOR))["id"]
    await host.tell(OTHER, {"id": number, "ok": "the secret answer"})
    assert (await secret)[1] == b'{"ok": "the secret answer"}'
    assert not asking.done()
    await host.tell(DOOR, {"id": mine, "ok": "nothing"})
    seen += (await asking)[1]
    assert b"secret" not in seen
    assert host.epoch.encode() not in seen


# -- bounds ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def relay() -> Relay:
    """One that passes nothing on, with a door."""
    found = Relay(None)
    found._command(json.dumps({"door": "x", "channel": DOOR}).encode())
    return found


def test_requests_under_way_are_bounded_for_each_token_and_in_all(relay, monkeypatch):
    monkeypatch.setattr(module, "MAX_ASKED", 3)
    relay.most_asked = 4
    relay._command(json.dumps({"door": "y", "channel": OTHER}).encode())
    door, other = relay._doors["x"], relay._doors["y"]
    with door.admitted(), door.admitted(), door.admitted():
        with pytest.raises(Busy, match=r"^3 requests are under way with this token: "), door.admitted():
            pass
        with other.admitted(), pytest.raises(Busy, match=r"^4 requests are under way: "), other.admitted():
            pass
        with other.admitted():
            pass
    assert relay.asked == 0


def test_bodies_that_are_being_read_are_bounded_for_each_token(relay, monkeypatch):
    monkeypatch.setattr(module, "MAX_HELD", 100)
    door = relay._doors["x"]
    with door.holding() as hold:
        hold(40)
        with door.holding() as another:
            another(60)
            with pytest.raises(Busy, match=r"^bodies of more than 100 bytes "):
                hold(1)
        hold(59)
    with door.holding() as hold:
        hold(100)


async def test_more_requests_than_may_be_under_way_are_refused_in_words_and_then_taken_again(host):
    await opened(host)
    asking = [asyncio.ensure_future(host.enqueue(call(f"{n}"))) for n in range(module.MAX_ASKED + 100)]
    done, waiting = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    while len(done) < 100:
        more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        done |= more
    assert len(done) == 100
    for task in done:
        status, body = task.result()
        assert (status, json.loads(body)["error"]["message"]) == (429, "2,000 requests are under way with this token: wait for answers")
    for _ in range(module.MAX_ASKED):
        number = (await host.hear(DOOR))["id"]
        host.outgoing.put(DOOR, b"".join(wire.encode({"id": number, "ok": number})))
    await host.flush()
    assert {task.result()[0] for task in (await asyncio.wait(waiting))[0]} == {200}
    again = asyncio.ensure_future(host.enqueue(call("again")))
    await host.tell(DOOR, {"id": (await host.hear(DOOR))["id"], "ok": 1})
    assert (await again)[0] == 200


async def test_while_too_much_waits_for_the_host_no_body_is_read(monkeypatch):
    """The application by itself, spoken to by ASGI's messages, as to see what it reads."""
    monkeypatch.setattr(module, "HELD_BYTES", 1000)
    relay = Relay(None)
    relay._command(json.dumps({"door": module.digest(TOKEN_DOOR), "channel": DOOR}).encode())
    app = Broker(relay, TOKEN_HOST).app
    reads: list[int] = []
    sent: list[dict] = []

    async def ask(number: int) -> None:
        async def receive() -> dict:
            if number in reads:
                await asyncio.Event().wait()
            reads.append(number)
            return {"type": "http.request", "body": json.dumps(call("x" * 900)).encode(), "more_body": False}

        async def send(message) -> None:
            sent.append(message)

        headers = [(TOKEN.encode(), TOKEN_DOOR.encode())]
        await app({"type": "http", "method": "POST", "path": "/enqueue", "headers": headers, "query_string": b""}, receive, send)

    asking = [asyncio.ensure_future(ask(number)) for number in range(10)]
    await relay.pending(relay.epoch, 0, 20)
    for _ in range(10):
        await asyncio.sleep(0)
    held = relay._outgoing.size
    assert 1000 <= held < 2 * 1000 + 100  # one more, and a hello
    asking.append(asyncio.ensure_future(ask(10)))
    for _ in range(10):
        await asyncio.sleep(0)
    assert 10 not in reads
    assert relay._outgoing.size == held
    decoder, heard, after = wire.Decoder(), list[wire.Message](), 0
    while len(heard) < 12:
        assert relay._outgoing.size < 2 * 1000 + 100
        packet = await relay.pending(relay.epoch, after, 20)
        heard += decoder.feed(b"".join(data for _, data in packet.pieces))
        after += len(packet.pieces)
    assert [message["args"]["prompt"] for message in heard[1:]] == ["x" * 900] * 11
    assert 10 in reads
    relay._doors[module.digest(TOKEN_DOOR)].shut("it is over")
    await asyncio.gather(*asking)
    assert sorted({message["status"] for message in sent if message["type"] == "http.response.start"}) == [503]


async def test_requests_that_were_let_in_together_do_not_fill_the_broker(monkeypatch):
    """Their heads first, while there is room, and then all bodies."""
    size, crowd = 200_000, 30
    monkeypatch.setattr(module, "HELD_BYTES", 1024 * 1024)
    relay = Relay(None)
    relay._command(json.dumps({"door": module.digest(TOKEN_DOOR), "channel": DOOR}).encode())
    body = json.dumps(call("x" * size)).encode()
    head = f"POST /enqueue HTTP/1.1\r\nhost: x\r\n{TOKEN}: {TOKEN_DOOR}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    async with served(Broker(relay, TOKEN_HOST).app) as url, contextlib.AsyncExitStack() as stack:
        writers = []
        for _ in range(crowd):
            _, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
            stack.callback(writer.transport.abort)
            writer.write(head)
            writers.append(writer)
        while relay.asked < crowd:
            await asyncio.sleep(0.001)
        for writer in writers:
            writer.write(body)
        heard, after = 0, 0
        while heard < crowd * size:
            assert relay._outgoing.size < module.HELD_BYTES + 2 * size
            packet = await relay.pending(relay.epoch, after, 20, 1)
            heard += sum(len(data) for _, data in packet.pieces)
            after += len(packet.pieces)
        assert relay._doors[module.digest(TOKEN_DOOR)]._held == 0


async def test_a_request_that_cannot_be_sent_leaves_nothing_behind(relay):
    door = relay._doors["x"]
    with pytest.raises((ValueError, TypeError)):
        door.ask("x", {"a": object()})
    assert door._asked == {}
    assert relay._outgoing.size == 0


async def test_a_host_that_cannot_be_understood_ends_the_door_alone(relay):
    door = relay._doors["x"]
    asking = asyncio.ensure_future(door.ask("x", {}))
    await asyncio.sleep(0)
    relay._deliver(DOOR, b"\x00\x00\x00\x01{")
    with pytest.raises(Refused, match="could not be read"):
        await asking
    with pytest.raises(Refused, match="could not be read"):
        door.ask("x", {})


# -- in a cell -------------------------------------------------------------------------------------------------------------------------

HOSTILE = """
import json, urllib.request, urllib.error
url, token = open(".enqueue").read().split()
def ask(body, headers={}):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"x-arlm-token": token, **headers})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
for body in [
    {"call": "llm_query", "args": {"prompt": "hello", "model": None}},
    {"call": "llm_query", "args": {"prompt": 7, "model": None}},
    {"call": "no_such_function", "args": {}},
    {"call": "__init__", "args": {"self": {}}},
    {"call": "x" * 100000},
    {"call": 7},
]:
    status, said = ask(body)
    print(status, json.dumps(said)[:100])
"""


async def test_a_cell_asks_over_http_whatever_it_likes_and_the_run_goes_on():
    subject = conformance.Subject(name="loopback", environment=lambda: LoopbackREPL(network=True))
    async with open_bench(subject) as bench:
        lines = (await bench.out(HOSTILE)).splitlines()
        assert lines[0] == '200 {"ok": {"text": "hello"}}'
        assert [line.split()[0] for line in lines] == ["200", "200", "200", "200", "200", "400"]
        assert all('"error"' in line for line in lines[2:])
        assert await bench.out("print(llm_query('still here'))") == "still here\n"


BOMB = """
import json, urllib.request, urllib.error
url, token = open(".enqueue").read().split()
def ask(body):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, {"x-arlm-token": token})) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["message"]
for values in (400_000, 600_000, 5_000_000):
    print(*ask(b'{"call": "no such", "args": {"a": [' + b"[]," * (values - 1) + b"[]]}}"))
print(*ask(json.dumps({"call": "llm_query", "args": {"prompt": "hello", "model": None}}).encode()))
"""


async def test_a_request_with_more_values_than_the_host_reads_is_refused_and_the_door_stays():
    subject = conformance.Subject(name="loopback", environment=lambda: LoopbackREPL(network=True))
    async with open_bench(subject) as bench:
        taken, *refused, after = (await bench.out(BOMB)).splitlines()
        assert taken.startswith("200 {'error': ")
        assert refused == ["400 it may have 500,000 values"] * 2
        assert after == "200 {'ok': {'text': 'hello'}}"


async def test_a_token_is_worth_nothing_after_its_repl_though_nobody_had_used_it():
    environment = LoopbackREPL(network=True)
    async with open_bench(conformance.Subject(name="loopback", environment=lambda: environment)) as bench:
        await bench.out("1")
        other = bench.another()
        url, token = (await other.run_cell("print(open('.enqueue').read())", 1)).output.split()
        await other.close()
        await bench.out("2")  # what was sent to the broker before is there
        async with aiohttp.ClientSession() as session, session.post(url, headers={TOKEN: token}, json=call("hello")) as answer:
            assert answer.status == 401
        assert await bench.out("print(llm_query('still here'))") == "still here\n"


FLOOD = """
import json, urllib.request, urllib.error
from concurrent.futures import ThreadPoolExecutor
url, token = open(".enqueue").read().split()
body = json.dumps({"call": "llm_query", "args": {"prompt": "hang", "model": None, "more": "x" * 5000}}).encode()
def ask(_):
    try:
        urllib.request.urlopen(urllib.request.Request(url, body, {"x-arlm-token": token}))
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["message"]
with ThreadPoolExecutor(8) as pool:
    for said in sorted(set(pool.map(ask, range(8)))):
        print(*said)
"""


async def test_who_asks_on_while_the_host_has_all_it_takes_loses_the_door_and_nothing_else(monkeypatch):
    monkeypatch.setattr(peer, "MAX_CALLS", 2)
    monkeypatch.setattr(brokered, "KEPT_BYTES", 1000)
    subject = conformance.Subject(name="loopback", environment=lambda: LoopbackREPL(network=True))
    async with open_bench(subject) as bench:
        said = (await bench.out(FLOOD)).splitlines()
        assert said[-1] == "503 more than 1,000 bytes came while earlier requests waited"
        assert said[:-1] in ([], ["401 the token is not valid here"])  # to those who came later
        assert await bench.out("print(llm_query('still here'))") == "still here\n"


async def test_a_call_over_http_is_cancelled_when_its_sandbox_dies():
    environment = LoopbackREPL(network=True)
    async with open_bench(conformance.Subject(name="loopback", environment=lambda: environment)) as bench:
        await bench.out("1")
        async with bench.running(FLOOD.replace("range(8)", "range(1)")) as task:
            await bench.script.until(lambda: bench.script.prompts == ["hang"])
            environment.made[0].process.kill()
            await bench.script.until(lambda: bench.script.cancelled == ["hang"])
        assert "its sandbox was lost" in task.result().error


ANSWERS = """
import json, urllib.request, urllib.error
from concurrent.futures import ThreadPoolExecutor
url, token = open(".enqueue").read().split()
body = json.dumps({"call": "llm_query", "args": {"prompt": "hold" + "x" * 300_000, "model": None}}).encode()
def ask(_):
    try:
        return 200, urllib.request.urlopen(urllib.request.Request(url, body, {"x-arlm-token": token})).reason
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["message"]
with ThreadPoolExecutor(8) as pool:
    for said in sorted(set(pool.map(ask, range(8)))):
        print(*said)
"""


async def test_answers_that_do_not_get_away_are_bounded_and_cost_the_door_and_nothing_else(monkeypatch):
    monkeypatch.setattr(peer, "MAX_UNSENT", 1_000_000)
    async with open_gateway() as gateway:
        environment = loopback(gateway, network=True)
        async with open_bench(conformance.Subject(name="loopback", environment=lambda: environment)) as bench:
            await bench.out("1")
            async with bench.running(ANSWERS) as task:
                await bench.script.until(lambda: bench.script.in_flight == 8)
                gateway.plan = only(itertools.repeat(AnswerInstead(status=503)), path="/respond")
                bench.script.release.set()
                await bench.script.until(lambda: bench.script.in_flight == 0)
                gateway.plan = None
            assert task.result().output.splitlines()[-1] == "503 bench does not read: 1,000,000 bytes wait for it"
            assert await bench.out("print(llm_query('still here'))") == "still here\n"
        assert len(environment.made) == 1


def examples() -> list:
    section = DOCUMENT.partition("## Asking from other programs\n")[2].partition("\n## ")[0]
    return re.findall(r"^```(sh|bash|perl)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def test_the_document_has_an_example_in_each_language():
    assert [language for language, _ in examples()] == ["sh", "bash", "perl"]


@pytest.mark.parametrize(("language", "code"), examples(), ids=["sh", "bash", "perl"])
async def test_the_documents_examples_run_in_a_cell(language, code):
    needed = {"sh": "curl", "bash": "bash", "perl": "perl"}[language]
    if shutil.which(needed) is None:
        pytest.skip(f"there is no {needed} here")
    flag = {"sh": "-c", "bash": "-c", "perl": "-e"}[language]
    cell = f"import subprocess\ndone = subprocess.run([{language!r}, {flag!r}, {code!r}], capture_output=True, text=True)\n"
    model = ProgramLM()
    result = await arlm.run(
        final("done.stdout + done.stderr").replace("RUN ", f"RUN {cell}"), model=model, environment=LoopbackREPL(network=True)
    )
    assert result.answer.strip() == '{"ok": {"text": "ok: What is 6 times 7?"}}'
    assert model.seen[-1] == [{"role": "user", "content": "What is 6 times 7?"}]
