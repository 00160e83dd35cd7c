"""Much at once, and much at a time, in containers: cells that do not end, many calls, any text, large outputs, answers and contexts."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

import arlm
from arlm.context import write_context
from arlm.environments import docker as docker_module
from arlm.environments import docker_box
from arlm.testing.bench import open_bench
from arlm.testing.scripted import ScriptedLM
from docker_engine import Engine
from docker_places import cell, containers, docker, final, labels, left_on, road, said_to, subject
from docker_proxy import over_socket
from programs import ProgramLM, run

pytestmark = pytest.mark.docker

MIB = 1024 * 1024
ROADS = ["unix", "stdio", "elsewhere"]
PLANES = "".join(chr(plane * 0x10000 + 0xAB) for plane in range(17)) + "\0\r\n\u2028\ufeff\uffff"
TEXT = f"{PLANES} 𝄞 👩‍👩‍👧 é e\u0301 العربية \ud800 \udfff \udfff\ud800"  # lone surrogates, and a pair in the wrong order
HUNDRED = """
from concurrent.futures import ThreadPoolExecutor
prompts = [f"hold {n}" for n in range(100)]
with ThreadPoolExecutor(50) as pool:
    own = pool.map(llm_query, prompts[:50])
    batch = llm_query_batched(prompts[50:])
print([*own, *batch] == prompts)
"""


@pytest.fixture(autouse=True)
def nothing_is_left_on_the_engine(engine: Engine) -> Iterator[None]:
    yield
    assert left_on(engine.url) == []


async def test_a_cell_that_does_not_end_is_stopped_and_nothing_is_lost(engine: Engine) -> None:
    model = ScriptedLM([cell("kept = 7\nwhile True:\n    pass"), final("str(kept)")])
    result = await arlm.run("q", model=model, environment=docker(engine), cell_timeout=0.5)
    assert result.answer == "7"
    assert "cell_timeout of 0.5 s" in said_to(model)


async def test_a_cell_that_cannot_be_stopped_is_killed_and_its_container_stays(engine: Engine) -> None:
    where = "__import__('socket').gethostname()"
    stuck = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\nwhile True:\n    pass"
    model = ScriptedLM([cell(f"kept = 7\nprint({where})"), cell(stuck), final(where)])
    result = await arlm.run("q", model=model, environment=docker(engine), cell_timeout=0.5)
    assert "kept" in said_to(model)
    assert result.answer in str(model.root_calls[1].messages[-1]["content"])


@pytest.mark.parametrize("transport", ROADS)
async def test_a_hundred_calls_of_a_cell_are_under_way_at_once(transport: str, engine: Engine) -> None:
    with road(transport, engine) as options:
        async with open_bench(subject(engine, **options)) as bench, bench.running(HUNDRED) as task:
            await bench.script.until(lambda: bench.script.in_flight == 100)
            bench.script.release.set()
            assert (await task).output == "True\n"


@pytest.mark.parametrize("transport", ROADS)
async def test_every_character_survives_in_prompts_outputs_contexts_and_answers(transport: str, engine: Engine) -> None:
    context = {"text": TEXT, TEXT: [TEXT * 10_000]}  # large enough to travel as a file

    def sub(messages: list[arlm.Message]) -> str:
        assert messages[0]["content"] == TEXT + "?"
        return TEXT + "!"

    code = f"t = {TEXT!r}\nsame = (context, llm_query(t + '?')) == ({{'text': t, t: [t * 10_000]}}, t + '!')\nprint(t)"
    model = ScriptedLM([cell(code), final(f"str(same) + {TEXT!r}")], sub=sub)
    with road(transport, engine) as options:
        result = await arlm.run("q", context=context, model=model, environment=docker(engine, **options))
    assert result.answer == f"True{TEXT}"
    assert "𝄞 👩‍👩‍👧" in said_to(model)


@pytest.mark.parametrize("transport", ROADS)
async def test_ten_megabytes_of_output_are_told_by_head_tail_and_length(transport: str, engine: Engine) -> None:
    with road(transport, engine) as options:
        async with open_bench(subject(engine, **options)) as bench:
            result = await bench.cell("print('begin')\nfor _ in range(1000):\n    print('x' * 9_999)\nprint('end')")
            assert result.output_chars == 10_000_000 + len("begin\nend\n")
            assert len(result.output) < 21_000
            assert result.output.startswith("begin\nxxx")
            assert result.output.endswith("xxx\nend\n")
            assert await bench.out("1 + 1") == "2\n"


@pytest.mark.parametrize("transport", ROADS)
async def test_ten_megabytes_of_an_answer_and_of_a_prompt_arrive_whole(transport: str, engine: Engine) -> None:
    def sub(messages: list[arlm.Message]) -> str:
        return messages[0]["content"][::-1]

    model = ScriptedLM([final("llm_query('ab' * 5_000_000)")], sub=sub)
    with road(transport, engine) as options:
        result = await arlm.run("q", model=model, environment=docker(engine, **options))
    assert result.answer == "ba" * 5_000_000


@pytest.mark.parametrize("transport", ["unix", "elsewhere"])
@pytest.mark.parametrize("as_path", [True, False], ids=["path", "str"])
async def test_fifty_megabytes_of_context_are_read_whole(as_path: bool, transport: str, engine: Engine, tmp_path: Path) -> None:
    text = "0123456789abcdé\n" * (50 * MIB // 17)
    file = tmp_path / "context.txt"
    file.write_text(text, encoding="utf-8")
    code = final("str((len(context), hash_of(context.encode()).hexdigest()))").replace("hash_of", "__import__('hashlib').sha256")
    with road(transport, engine) as options:
        environment = docker(engine, **options)
        result = await arlm.run("q", context=file if as_path else text, model=ScriptedLM([code]), environment=environment)
    assert result.answer == str((len(text), __import__("hashlib").sha256(text.encode()).hexdigest()))
    assert file.stat().st_size == len(text.encode())


@pytest.mark.parametrize("transport", ["unix", "stdio"])
async def test_a_context_on_this_machine_is_neither_copied_nor_sent_to_the_engine(transport: str, engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "context"
    file.write_bytes(bytes(50 * MIB))
    names = []

    def look(_messages: list[arlm.Message]) -> str:
        names.append(file.stat().st_nlink)
        return final("str(len(context))")

    async with over_socket(engine.url, tmp_path / "s") as way:
        environment = docker(engine, engine=way.url, transport=transport)
        result = await arlm.run("q", context=file, model=ScriptedLM([look]), environment=environment)
    assert result.answer == str(50 * MIB)
    assert names == [2]
    assert 0 < way.sent < MIB / 10


async def test_twenty_places_at_once_answer_each_its_own(engine: Engine) -> None:
    all_there = asyncio.Barrier(20)
    open_at_once: set[str] = set()

    async def one(number: int) -> str:
        async def model(_messages: list[arlm.Message]) -> str:
            if await all_there.wait() == 0:
                open_at_once.update(each["Id"][:12] for each in containers(engine.url))
            await all_there.wait()
            return final("context[-2:] + __import__('socket').gethostname()")

        environment = docker(engine, memory=128 * MIB)
        return str((await arlm.run("q", context="c" * 100_000 + f"{number:02}", model=model, environment=environment)).answer)

    answers = await asyncio.gather(*(one(number) for number in range(20)))
    assert [answer[:2] for answer in answers] == [f"{number:02}" for number in range(20)]
    assert {answer[2:] for answer in answers} == open_at_once
    assert len(open_at_once) == 20


class Looking(ProgramLM):
    """Looks at the engine at each call."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.found: dict[str, str] = {}

    async def reply(self, messages: list[arlm.Message]) -> str:
        self.found |= {each["Id"]: labels(each)["arlm.run"] for each in containers(self.engine.url)}
        return await super().reply(messages)


async def test_children_are_workers_of_one_container(engine: Engine) -> None:
    model = Looking(engine)
    child = run("answer.update(content=context + '@' + __import__('socket').gethostname() + llm_query('x'), ready=True)")
    program = run(f"found = rlm_query_batched([{child!r}] * 20)\nanswer.update(content=' '.join(sorted(set(found))), ready=True)")
    result = await arlm.run(program, model=model, environment=docker(engine), max_depth=2)
    assert len(result.children) == 20
    assert list(model.found.values()) == [result.run_id]
    assert next(iter(model.found))[:12] in result.answer


async def test_a_file_that_becomes_shorter_while_it_is_copied_is_an_error(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def while_it_shrinks(file: BinaryIO, name: str) -> AsyncIterator[bytes]:
        async for piece in docker_box.file_archive(file, name):
            yield piece
            os.truncate(file.name, MIB)

    monkeypatch.setattr(docker_module, "file_archive", while_it_shrinks)
    file = tmp_path / "context"
    file.write_bytes(bytes(5 * MIB))
    with road("elsewhere", engine) as options, pytest.raises(arlm.SandboxError) as caught:
        await arlm.run("q", context=file, model=ScriptedLM(), environment=docker(engine, **options))
    assert str(caught.value) == f"{file} became shorter while it was copied to the container"


# -- what others may not read ------------------------------------------------------------------------------------------


async def test_a_context_that_its_owner_alone_may_read_is_read(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "context"
    file.write_text("c" * 100_000)
    file.chmod(0o600)
    model = ScriptedLM([final("str(len(context))")])
    assert (await arlm.run("q", context=file, model=model, environment=docker(engine))).answer == "100000"
    assert file.stat().st_mode & 0o777 == 0o600


async def test_programs_that_their_owner_alone_may_read_are_run(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = tmp_path / "guest"
    shutil.copytree(docker_box.HERE, private)
    for path in private.glob("*.py"):
        path.chmod(0o600)
    monkeypatch.setattr(docker_box, "HERE", private)
    model = ScriptedLM([final("'yes'")])
    assert (await arlm.run("q", model=model, environment=docker(engine))).answer == "yes"


async def test_a_context_that_is_dropped_is_not_there_any_more(engine: Engine) -> None:
    async with open_bench(subject(engine)) as bench:
        file = await write_context("c" * 100_000, bench.scratch / "c")
        paths = [await bench.place.put(file) for _ in range(2)]
        await bench.place.drop(paths[0])
        assert await bench.out("import os\nos.listdir('/arlm/contexts')") == f"[{Path(paths[1]).name!r}]\n"
