"""Cells whose calls go out through a gateway that does everything wrong: each is answered once, with what it asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings

import arlm
from arlm.server import poller
from arlm.testing.bench import Bench, open_bench
from arlm.testing.gateway import Gateway, open_gateway
from arlm.testing.gateway_faults import AnswerInstead, CloseIdle, Fault, Rates
from arlm.testing.scripted import ScriptedLM
from brokers import loopback, subject
from gateway_schedules import schedules
from held import held

EACH = 0.1 / 5
TENTH = Rates(drop_request=EACH, drop_reply=EACH, delay_request=EACH, delay_reply=EACH, duplicate=EACH, seconds=0.05)
ALL_KINDS = Rates(
    drop_request=0.03,
    drop_reply=0.03,
    delay_request=0.03,
    delay_reply=0.03,
    duplicate=0.03,
    replay=0.03,
    cut_request=0.03,
    cut_reply=0.03,
    answer=0.03,
    old_reply=0.03,
    close_idle=0.03,
    corrupt=0.03,
    seconds=0.02,
    statuses=(200, 400, 401, 403, 404, 502, 503, 504),
    outage=3,
)

CALLS = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(THREADS) as pool:
    own = list(pool.map(lambda n: llm_query(f"single {n}"), range(SINGLE)))
batch = llm_query_batched([f"batch {n}" for n in range(BATCH)])
print(own == [f"single {n}" for n in range(SINGLE)], batch == [f"batch {n}" for n in range(BATCH)], len(own) + len(batch))
"""


def calls(single: int, batch: int, *, threads: int = 16) -> str:
    return CALLS.replace("SINGLE", str(single)).replace("BATCH", str(batch)).replace("THREADS", str(threads))


@pytest_asyncio.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with open_gateway() as it:
        yield it


@pytest_asyncio.fixture
async def bench(gateway: Gateway) -> AsyncIterator[Bench]:
    """A bench behind the gateway, its worker started."""
    async with held(open_bench(subject(loopback(gateway)))) as it:
        await it.out("1")
        yield it


@pytest.mark.parametrize("rates", [pytest.param(TENTH, id="a tenth"), pytest.param(ALL_KINDS, id="all kinds")])
async def test_of_a_thousand_calls_each_is_answered_once(rates: Rates, gateway: Gateway, bench: Bench) -> None:
    before = gateway.counts["requests"]
    gateway.plan = rates
    assert await bench.out(calls(700, 300, threads=3)) == "True True 1000\n"
    gateway.plan = None
    assert Counter(bench.script.prompts) == Counter([f"single {n}" for n in range(700)] + [f"batch {n}" for n in range(300)])
    requests = gateway.counts["requests"] - before
    faults = sum(1 for entry in gateway.log[before:] if entry.fault is not None)
    assert faults > requests * 0.05
    assert requests > 400
    print(f"{requests} requests, {faults} faults: {dict(gateway.counts)}")


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(schedule=schedules(most=30, longest_s=0.01))
async def test_over_any_schedule_each_call_is_answered_once(gateway: Gateway, bench: Bench, schedule: list[Fault | None]) -> None:
    bench.script.prompts.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(poller, "PAUSES", (0.002, 0.02))
        gateway.plan = schedule
        assert await bench.out(calls(6, 5)) == "True True 11\n"
        assert await bench.out("llm_query('last')") == "'last'\n"
        gateway.plan = None
    assert Counter(bench.script.prompts) == Counter([f"single {n}" for n in range(6)] + [f"batch {n}" for n in range(5)] + ["last"])


AT_ONCE = {
    "batch": "r = llm_query_batched(prompts)",
    "single": "import asyncio\nr = await asyncio.gather(*map(llm_query_async, prompts))",
}


@pytest.mark.parametrize("way", AT_ONCE)
async def test_five_hundred_calls_are_in_flight_through_one_broker(way: str, gateway: Gateway, bench: Bench) -> None:
    gateway.plan = TENTH
    code = f"prompts = [f'hold {{n}}' for n in range(500)]\n{AT_ONCE[way]}\nprint(r == prompts)"
    async with bench.running(code) as task:
        await bench.script.until(lambda: bench.script.in_flight == 500)
        bench.script.release.set()
        assert (await task).output == "True\n"
    assert Counter(bench.script.prompts) == Counter(f"hold {n}" for n in range(500))
    assert gateway.most_in_flight < 20


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 502, 503, 504])
async def test_an_outage_in_the_middle_of_a_call_is_sat_out(status: int, gateway: Gateway, bench: Bench) -> None:
    async with bench.running("print(llm_query('hold'))") as task:
        await bench.script.until(lambda: bench.script.in_flight == 1)
        gateway.plan = [AnswerInstead(status=status, html=status == 200, requests=8)]
        gateway.reset_connections()
        bench.script.release.set()
        assert (await task).output == "hold\n"
    assert gateway.counts["AnswerInstead"] == 8
    assert bench.script.prompts == ["hold"]


async def test_a_gateway_that_closes_every_connection_is_no_trouble(gateway: Gateway, bench: Bench) -> None:
    gateway.plan = lambda _seen: CloseIdle()
    assert await bench.out(calls(40, 10)) == "True True 50\n"
    assert len(bench.script.prompts) == 50


async def test_the_output_of_a_cell_and_large_answers_pass_whole(gateway: Gateway, bench: Bench) -> None:
    gateway.plan = ALL_KINDS
    await bench.context("c" * 3_000_000)
    code = "big = 'x' * 2_000_000\nr = llm_query(big)\nprint(r == big, len(context), llm_query_batched([big] * 3) == [big] * 3)"
    assert await bench.out(code) == "True 3000000 True\n"
    assert [len(prompt) for prompt in bench.script.prompts] == [2_000_000] * 4
    assert len((await bench.cell("print('y' * 1_000_000)")).output) < 25_000


async def test_a_cell_is_stopped_through_a_gateway_that_fails_and_its_calls_are_cancelled(gateway: Gateway) -> None:
    async with open_bench(subject(loopback(gateway)), cell_timeout=1.0) as bench:
        await bench.out("x = 1")
        gateway.plan = ALL_KINDS
        result = await bench.cell("while True: pass")
        assert (result.stopped, result.lost) == ("timeout", None)
        assert await bench.out("x") == "1\n"


async def test_a_run_through_a_gateway_that_fails_gives_the_right_answer(gateway: Gateway) -> None:
    gateway.plan = ALL_KINDS
    code = "r = llm_query_batched([f'{n}' for n in range(50)])\nanswer.update(content=str(r == ['ok'] * 50), ready=True)"
    model = ScriptedLM([f"```repl\n{code}\n```"], sub=lambda _: "ok")
    result = await arlm.run("q", context="c" * 200_000, model=model, environment=loopback(gateway))
    assert result.answer == "True"
    assert len(model.calls) == 51
