"""examples/service.py under a real server, with real clients, many at once, of which some hang up."""

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import uvicorn

import arlm
from arlm.testing import Script, ScriptedLM, ScriptedProvider
from commandline import clean_environment

EXAMPLES = Path(__file__).parents[2] / "examples"
STOP_S = 5.0  # for a server's process to end once its questions are cancelled
ASK = {"prompt": "q", "context": "c"}


@pytest.fixture(scope="module")
def service():
    spec = importlib.util.spec_from_file_location("service", EXAMPLES / "service.py")
    module = sys.modules["service"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["service"]


@asynccontextmanager
async def served(app):
    """The app under uvicorn on a port of its own; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None, timeout_graceful_shutdown=0))
        task = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:
            assert not task.done()
            await asyncio.sleep(0.001)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


def client_of(url=""):
    return httpx.AsyncClient(base_url=url, timeout=60, trust_env=False, limits=httpx.Limits(max_connections=None))


@asynccontextmanager
async def serving(app):
    """The app under uvicorn, and a client of it."""
    async with served(app) as url, client_of(url) as client:
        yield client


class Gate:
    """A step of a scripted model that answers nobody before it is opened."""

    def __init__(self):
        self.waiting = 0
        self._open = asyncio.Event()

    async def __call__(self, messages):
        self.waiting += 1
        await self._open.wait()
        return f"reply to {messages[-1]['content']}"

    async def until(self, waiting):
        while self.waiting < waiting:
            await asyncio.sleep(0.001)

    def open(self):
        self._open.set()


def cell(code):
    return f"```repl\n{code}\n```"


def final(expression, before=""):
    return cell(f"{before}\nanswer['content'] = str({expression})\nanswer['ready'] = True")


def asked(messages, word):
    return word in messages[1]["content"]


def workers():
    """The workers alive: below this process there are supervisors, and they are below those."""
    found = []
    for supervisor in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since it was listed, and its workers with it
            found += supervisor.children(recursive=True)
    return found


async def until_nothing_is_left_but(tasks, processes=0):
    while len(workers()) > processes or asyncio.all_tasks() - tasks:
        await asyncio.sleep(0.005)


async def send_and_hold(client, path, body=ASK):
    """A request over a socket of its own, whose answer nobody reads yet."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    payload = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    writer.write(head.encode() + payload)
    await writer.drain()
    return reader, writer


def hang_up(connection, *, rudely):
    _, writer = connection
    if rudely:
        writer.transport.abort()
    else:
        writer.close()


async def test_a_hundred_questions_at_once_get_each_its_own_answer(service):
    gate = Gate()
    lm = ScriptedLM([final("llm_query(context)")] * 100, sub=gate)
    async with serving(service.create_app(model=lm)) as client:
        questions = [{"prompt": "q", "context": f"text {n}"} for n in range(100)]
        requests = [asyncio.create_task(client.post("/ask", json=question)) for question in questions]
        await gate.until(100)
        assert len(workers()) == 100
        gate.open()
        told = [(await request).json() for request in requests]
    assert [it["answer"] for it in told] == [f"reply to text {n}" for n in range(100)]
    assert {(it["stop_reason"], it["usage"]["total"]["calls"]) for it in told} == {("answered", 2)}


async def test_each_user_has_variables_and_a_context_of_their_own(service):
    def root(messages):
        return final("(kept, context, os.getpid())") if asked(messages, "again") else final("1", before="import os\nkept = context[::-1]")

    users = [f"user{n}" for n in range(10)]
    async with serving(service.create_app(model=ScriptedLM([root] * 30))) as client:
        first = [client.post(f"/users/{user}/ask", json={"prompt": "first", "context": user}) for user in users]
        assert {reply.status_code for reply in await asyncio.gather(*first)} == {200}
        seen = []
        for _ in range(2):
            later = await asyncio.gather(*[client.post(f"/users/{user}/ask", json={"prompt": "again"}) for user in users])
            seen.append([reply.json()["answer"] for reply in later])
        assert len(workers()) == 10
    assert seen[0] == seen[1]
    assert [text.rpartition(",")[0] for text in seen[0]] == [f"('{user[::-1]}', '{user}'" for user in users]
    assert len(set(seen[0])) == 10


async def test_a_second_question_of_one_user_at_once_is_a_conflict_and_disturbs_nobody(service):
    gate = Gate()
    lm = ScriptedLM([lambda messages: final("'quick'" if asked(messages, "quick") else "llm_query('x')")] * 4, sub=gate)
    async with serving(service.create_app(model=lm)) as client:
        first = asyncio.create_task(client.post("/users/ann/ask", json={"prompt": "slow"}))
        await gate.until(1)
        second = await client.post("/users/ann/ask", json={"prompt": "quick"})
        other = await client.post("/users/bob/ask", json={"prompt": "quick"})
        gate.open()
        assert (second.status_code, second.json()["detail"][:41]) == (409, "your session is answering a question; wai")
        assert (other.status_code, other.json()["answer"]) == (200, "quick")
        assert (await first).json()["answer"] == "reply to x"
        assert (await client.post("/users/ann/ask", json={"prompt": "quick"})).json()["answer"] == "quick"


async def test_two_first_questions_of_one_user_at_once_open_one_session(service):
    gate = Gate()
    async with serving(service.create_app(model=ScriptedLM([final("llm_query('x')")] * 2, sub=gate))) as client:
        both = [asyncio.create_task(client.post("/users/ann/ask", json=ASK)) for _ in range(2)]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        await gate.until(1)
        assert len(workers()) == 1
        gate.open()
        assert sorted([(await it).status_code for it in both]) == [200, 409]


KEPT = [final("'kept'", before="kept = 1"), final("'kept' in globals()")]


@pytest.mark.parametrize(("idle_s", "asks_to_end"), [(0.01, False), (600.0, True)], ids=["idle", "asked to"])
async def test_a_session_ends_when_idle_or_when_asked_to_and_the_next_question_opens_another(service, idle_s, asks_to_end):
    async with serving(service.create_app(model=ScriptedLM(KEPT), idle_s=idle_s)) as client:
        tasks = asyncio.all_tasks()
        assert (await client.post("/users/ann/ask", json=ASK)).json()["answer"] == "kept"
        if asks_to_end:
            assert len(workers()) == 1
            for _ in range(2):
                assert (await client.delete("/users/ann")).status_code == 204
        await until_nothing_is_left_but(tasks | asyncio.all_tasks())
        assert (await client.post("/users/ann/ask", json=ASK)).json()["answer"] == "False"


async def test_more_sessions_than_allowed_are_refused(service):
    async with serving(service.create_app(model=ScriptedLM([final("1")] * 3), max_sessions=1)) as client:
        assert (await client.post("/users/ann/ask", json=ASK)).status_code == 200
        assert (await client.post("/users/bob/ask", json=ASK)).status_code == 503
        assert (await client.delete("/users/ann")).status_code == 204
        assert (await client.post("/users/bob/ask", json=ASK)).status_code == 200


@pytest.mark.parametrize(
    ("status", "error", "script", "options"),
    [
        pytest.param(422, "ConfigError", [], {"environment": "nowhere"}, id="configuration"),
        pytest.param(502, "AuthError", [arlm.AuthError("wrong key", status=401)], {}, id="provider"),
        pytest.param(429, "CallLimit", [final("llm_query('x')")] * 2, {"max_calls": 1, "on_limit": "raise"}, id="limit"),
        pytest.param(504, "RunTimeout", [final("llm_query('x')")], {"timeout": 0.3}, id="timeout"),
    ],
)
@pytest.mark.parametrize("path", ["/ask", "/users/ann/ask"])
async def test_an_error_has_a_status_and_says_what_it_is(service, path, status, error, script, options):
    async with serving(service.create_app(model=ScriptedLM(script, sub=Gate()), **options)) as client:
        reply = await client.post(path, json=ASK)
    assert (reply.status_code, reply.json()["error"]) == (status, error)
    assert reply.json()["detail"]


async def test_what_is_no_question_is_refused_before_anything_starts(service):
    lm = ScriptedLM([])
    async with serving(service.create_app(model=lm)) as client:
        for wrong in ({}, {"prompt": ""}, {"prompt": " "}, {"prompt": 1}):
            assert (await client.post("/ask", json=wrong)).status_code == 422
        assert workers() == []
    assert lm.calls == []


async def test_a_provider_that_asks_to_wait_is_passed_on(service):
    response = await service.failed(None, arlm.RateLimited("later", retry_after=7))
    assert (response.status_code, response.headers["retry-after"]) == (503, "7")


async def test_the_events_of_a_run_are_streamed_and_the_last_says_the_answer(service):
    gate = Gate()
    app = service.create_app(model=ScriptedLM([final("llm_query(context)")], sub=gate))
    async with serving(app) as client, client.stream("POST", "/ask/events", json=ASK) as reply:
        lines = reply.aiter_lines()
        while await anext(lines) != "event: subcall_started":
            pass
        gate.open()  # only now: what was read until here had come while the run was under way
        *_, last = [json.loads(line.removeprefix("data: ")) async for line in lines if line.startswith("data: ")]
    assert (last["type"], last["answer"]) == ("run_ended", "reply to c")


async def test_a_streamed_run_that_fails_ends_with_an_error_event(service):
    async with serving(service.create_app(model=ScriptedLM([arlm.AuthError("wrong key")]))) as client:
        text = (await client.post("/ask/events", json=ASK)).text
    assert text.endswith('event: error\ndata: {"error": "AuthError", "detail": "wrong key"}\n\n')


@pytest.mark.parametrize("path", ["/ask", "/ask/events", "/users/{}/ask"])
async def test_thirty_clients_that_hang_up_at_once_cancel_their_runs_and_no_other(service, path):
    gate = Gate()
    lm = ScriptedLM([final("llm_query(context)")] * 40, sub=gate)
    async with serving(service.create_app(model=lm)) as client:
        stays = asyncio.create_task(client.post("/ask", json={"prompt": "q", "context": "mine"}))
        await gate.until(1)
        tasks = asyncio.all_tasks()
        connections = await asyncio.gather(*[send_and_hold(client, path.format(n)) for n in range(30)])
        await gate.until(31)
        assert len(workers()) == 31
        for n, connection in enumerate(connections):
            hang_up(connection, rudely=n % 2 == 0)
        sessions = 30 if "users" in path else 0  # they live on, at rest
        await until_nothing_is_left_but(tasks, processes=1 + sessions)
        assert lm.in_flight == 1
        gate.open()
        assert (await stays).json()["answer"] == "reply to mine"
        assert (await client.post(path.format(7), json=ASK)).status_code == 200


async def test_a_client_that_does_not_read_its_events_ends_its_run_by_hanging_up(service):
    gate = Gate()
    flood = cell("llm_query_batched(['x' * 1_000_000] * 30)")  # more in events than sockets hold
    async with serving(service.create_app(model=ScriptedLM([flood], sub=gate))) as client:
        tasks = asyncio.all_tasks()
        connection = await send_and_hold(client, "/ask/events")
        await gate.until(30)
        hang_up(connection, rudely=False)
        await until_nothing_is_left_but(tasks)


async def test_a_client_that_hangs_up_stops_a_busy_cell_and_the_session_keeps_its_variables(service):
    lm = ScriptedLM([cell("kept = 7\nllm_query('x')\nwhile True: pass"), final("kept")], sub="ok")
    async with serving(service.create_app(model=lm)) as client:
        connection = await send_and_hold(client, "/users/ann/ask")
        while not lm.sub_calls:
            await asyncio.sleep(0.001)
        hang_up(connection, rudely=False)
        while (reply := await client.post("/users/ann/ask", json={"prompt": "again"})).status_code == 409:
            await asyncio.sleep(0.001)
    assert reply.json()["answer"] == "7"


async def test_a_client_that_hangs_up_before_its_session_is_open_leaves_no_worker(service):
    lm = ScriptedLM([final("'there'")] * 20)
    async with serving(service.create_app(model=lm)) as client:
        tasks = asyncio.all_tasks()
        for n in range(10):
            connection = await send_and_hold(client, "/users/ann/ask")
            for _ in range(n):
                await asyncio.sleep(0)
            hang_up(connection, rudely=True)
        await until_nothing_is_left_but(tasks, processes=1)
        assert (await client.post("/users/ann/ask", json=ASK)).json()["answer"] == "there"


async def test_a_server_that_stops_cancels_what_is_under_way_and_leaves_nothing(service):
    gate = Gate()
    lm = ScriptedLM([lambda messages: final("1" if asked(messages, "rest") else "llm_query('x')")] * 40, sub=gate)
    tasks = asyncio.all_tasks()
    async with client_of() as client:
        async with served(service.create_app(model=lm)) as url:
            assert (await client.post(f"{url}/users/resting/ask", json={"prompt": "rest"})).status_code == 200
            paths = ["/ask"] * 10 + [f"/users/{n}/ask" for n in range(10)] + ["/ask/events"] * 10
            requests = [asyncio.create_task(client.post(url + path, json=ASK)) for path in paths]
            await gate.until(30)
            assert len(workers()) == 31
        await asyncio.wait(requests)
    await until_nothing_is_left_but(tasks)
    assert lm.in_flight == 0


@asynccontextmanager
async def service_process(**variables):
    """The service as its docstring starts it, in a process of its own; and its address."""
    words = ["--app-dir", str(EXAMPLES), "service:app", "--port", "0", "--timeout-graceful-shutdown", "0"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "uvicorn", *words], stderr=pipe, stdout=pipe, env=clean_environment(**variables)
    )
    try:
        said = ""
        while not (found := re.search(r"http://127.0.0.1:\d+", said)):
            said = (await process.stderr.readline()).decode()
            assert said
        yield process, found[0]
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_service_that_is_told_to_stop_ends_soon_and_leaves_nothing(number):
    script = Script(turns=[final("llm_query('x')")], faults_for="sub", error_rates={"stall": 1.0})
    with tempfile.TemporaryDirectory() as folder:
        async with ScriptedProvider(script) as provider, client_of() as client:
            variables = {
                "TMPDIR": folder,
                "ARLM_MODEL": "openai/scripted",
                "OPENAI_BASE_URL": provider.url,
                "OPENAI_API_KEY": "sk-scripted",
            }
            async with service_process(**variables) as (process, url):
                paths = ["/ask"] * 5 + [f"/users/{n}/ask" for n in range(5)] + ["/ask/events"] * 5
                requests = [asyncio.create_task(client.post(url + path, json=ASK)) for path in paths]
                await provider.until(lambda stats: stats["in_flight"] == 15)
                below = psutil.Process(process.pid).children(recursive=True)
                assert len(below) == 16
                process.send_signal(number)
                async with asyncio.timeout(STOP_S):
                    _, err = await process.communicate()
            await asyncio.wait(requests)
            await provider.until(lambda stats: stats["in_flight"] == 0)
        assert psutil.wait_procs(below, timeout=STOP_S)[1] == []
        assert os.listdir(folder) == []
    assert "Application shutdown complete" in err.decode()
    assert "clean-up" not in err.decode()
