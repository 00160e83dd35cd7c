"""Child runs: their place, their contexts, their accounts, their ends."""

import asyncio
import random
from typing import Any

import pytest

import arlm
from arlm.events import AnyEvent, ChildEnded, ChildStarted, LimitReached, SubcallStarted
from arlm.types import Message
from programs import ProgramLM, final, run


async def ask(program: str, *, lm: ProgramLM | None = None, **options: Any) -> arlm.Result:
    return await arlm.run(program, model=lm or ProgramLM(), **{"max_depth": 2, "context": "the root's", "output_type": Any, **options})


def child(expression: str) -> str:
    """Code of a call to a child that answers with this expression's value."""
    return f"rlm_query({final(expression)!r})"


# -- what a child is -----------------------------------------------------------------------------------------------------


async def test_a_child_has_a_repl_of_its_own_with_the_prompt_as_its_context():
    program = final("context[:3]")
    result = await ask(run(f"mine = 1; import os; r = rlm_query({program!r}); answer.update(content=[r, mine, context], ready=True)"))
    assert result.answer == ["RUN", 1, "the root's"]


async def test_a_child_sees_nothing_of_its_parent_and_leaves_nothing_in_it():
    inner = run("try: answer.update(content=mine)\nexcept NameError: answer.update(content='unknown')\ntheirs = 2; answer['ready'] = True")
    result = await ask(run(f"mine = 1\nr = rlm_query({inner!r})\nanswer.update(content=[r, 'theirs' in globals()], ready=True)"))
    assert result.answer == ["unknown", False]


@pytest.mark.parametrize(
    "value",
    ["'text'", "''.join(chr(n) for n in range(1, 0xFFFF)) * 3", "{'a': [1, 2.5, None, 'é']}", "[]", "0", "context", "'x' * 3_000_000"],
)
async def test_a_value_given_as_context_arrives_unchanged(value: str):
    def look(name: str) -> str:
        return f"[type({name}).__name__, len(repr({name})), __import__('zlib').crc32(repr({name}).encode('utf-8', 'surrogatepass'))]"

    code = f"import json\nv = {value}\nr = rlm_query({final(look('context'))!r}, context=v)"
    result = await ask(run(f"{code}\nanswer.update(content=[r, json.dumps({look('v')})], ready=True)"))
    if value == "[]":
        assert result.answer[0].startswith("Error: ConfigError: the context is empty")
    else:
        assert result.answer[0] == result.answer[1]


async def test_the_parents_own_context_reaches_a_child_without_being_sent(tmp_path):
    big = "0123456789" * 3_000_000  # 30 MB: more than a request of a cell may be
    result = await ask(run(f"answer.update(content=rlm_query({final('len(context)')!r}, context=context), ready=True)"), context=big)
    assert result.answer == str(len(big))


async def test_a_batch_of_children_keeps_its_order_and_takes_a_context_for_each():
    inner = final("context * 2")
    result = await ask(run(f"answer.update(content=rlm_query_batched([{inner!r}] * 5, contexts=list('abcde')), ready=True)"))
    assert result.answer == ["aa", "bb", "cc", "dd", "ee"]
    assert [one.answer for one in result.children] == result.answer


async def test_a_batch_with_too_few_contexts_is_an_error_in_the_cell():
    result = await ask(
        run("try: rlm_query_batched(['a', 'b'], contexts=['x'])\nexcept ValueError as e: answer.update(content=str(e), ready=True)")
    )
    assert "2 prompts and 1 contexts" in result.answer


async def test_the_async_form_runs_children_side_by_side():
    questions = [final(str(number)) for number in range(4)]
    code = f"import asyncio\nrs = await asyncio.gather(*[rlm_query_async(q) for q in {questions!r}])"
    assert (await ask(run(f"{code}\nanswer.update(content=rs, ready=True)"))).answer == ["0", "1", "2", "3"]


async def test_at_the_deepest_level_a_child_is_a_plain_call_and_the_prompt_says_so():
    lm = ProgramLM()
    inner = run("answer.update(content=rlm_query('leaf', context=[1, 2]), ready=True)")
    result = await ask(run(f"answer.update(content=rlm_query({inner!r}), ready=True)"), lm=lm)
    assert result.answer == "ok: leaf\n\n[1,2]"
    root, child_system = lm.systems
    assert "REPL of its own" in root
    assert "the same here, with a plain call" in child_system
    assert result.children[0].children == ()


async def test_a_plain_call_refuses_a_context_that_no_model_takes():
    result = await ask(run("answer.update(content=rlm_query('q', context=context), ready=True)"), context="x" * 9_000_000, max_depth=1)
    assert result.answer.startswith("Error: ConfigError: the context is a str of 9,000,000 characters")


async def test_an_empty_prompt_is_a_failed_sub_call():
    assert (await ask(run("answer.update(content=rlm_query('  '), ready=True)"))).answer.startswith(
        "Error: ConfigError: the prompt is empty"
    )


# -- models, tools, places -----------------------------------------------------------------------------------------------


async def test_models_go_by_depth_and_the_last_one_goes_for_all_deeper():
    lms = [ProgramLM(f"program/{name}") for name in ("root", "one", "two")]
    leaf = run("answer.update(content=llm_query('leaf'), ready=True)")
    middle = run(f"answer.update(content=[llm_query('x'), rlm_query({leaf!r})], ready=True)")
    program = run(f"llm_query('x'); answer.update(content=rlm_query({middle!r}), ready=True)")
    result = await ask(program, lm=lms[0], sub_model=lms[1:], max_depth=3)
    assert {name: one.calls for name, one in result.usage.models.items()} == {"program/root": 1, "program/one": 2, "program/two": 3}


async def test_a_named_model_plays_the_childs_turns_and_names_route_at_every_depth():
    other = ProgramLM("program/other")
    leaf = run("answer.update(content=llm_query('leaf', model='fast'), ready=True)")
    program = run(f"answer.update(content=rlm_query({leaf!r}, model='fast'), ready=True)")
    result = await ask(program, models={"fast": other})
    assert result.answer == "ok: leaf"
    assert result.usage.models["program/other"].calls == 2
    bad = await ask(run("answer.update(content=rlm_query('q', model='nope'), ready=True)"), models={"fast": other})
    assert "unknown model 'nope'" in bad.answer


def double(x: int) -> int:
    """Twice as much."""
    return 2 * x


@pytest.mark.parametrize(
    ("sub_tools", "expected"),
    [(None, ["6", "5"]), ({}, ["NameError", "NameError"]), ({"double": lambda x: x, "table": [9]}, ["3", "9"])],
)
async def test_children_have_their_parents_tools_or_those_of_sub_tools(sub_tools: Any, expected: list[str]):
    def tried(expression: str) -> str:
        return run(f"try: r = {expression}\nexcept NameError: r = 'NameError'\nanswer.update(content=r, ready=True)")

    code = (
        f"assert double(3) == 6\nanswer.update(content=[rlm_query({tried('double(3)')!r}), rlm_query({tried('table[0]')!r})], ready=True)"
    )
    result = await ask(run(code), tools={"double": double, "table": [5]}, sub_tools=sub_tools)
    assert result.answer == expected


async def test_a_grandchild_has_what_its_parent_has():
    leaf = final("double(4)")
    program = run(f"answer.update(content=rlm_query({run(f'answer.update(content=rlm_query({leaf!r}), ready=True)')!r}), ready=True)")
    assert (await ask(program, sub_tools=[double], max_depth=3)).answer == "8"


@pytest.mark.parametrize("sub_tools", [3, {"context": 1}, {"no name": 1}])
async def test_wrong_sub_tools_are_refused_before_anything_is_sent(sub_tools: Any):
    lm = ProgramLM()
    with pytest.raises(arlm.ConfigError, match=r"^sub_tools"):
        await ask(final("1"), lm=lm, sub_tools=sub_tools)
    assert lm.seen == []


PLACES = [
    pytest.param("local", {}, id="local", marks=pytest.mark.unmeasured),
    *(pytest.param("process", {"transport": transport}, id=transport) for transport in ("unix", "tcp", "stdio")),
    pytest.param("process", {"confine": "off"}, id="open"),
]


@pytest.mark.parametrize(("environment", "environment_options"), PLACES)
async def test_every_environment_has_children_of_children(environment: str, environment_options: dict[str, Any]):
    leaf = final("[len(context), llm_query('leaf')]")
    middle = run(f"answer.update(content=rlm_query_batched([{leaf!r}] * 3, contexts=['x' * 100_000, [1], context]), ready=True)")
    program = run(f"answer.update(content=rlm_query({middle!r}, context=context), ready=True)")
    options: dict[str, Any] = {"environment": environment, "environment_options": environment_options}
    result = await ask(program, context="c" * 70_000, max_depth=3, **options)
    assert result.answer == '["[100000, \\"ok: leaf\\"]", "[1, \\"ok: leaf\\"]", "[70000, \\"ok: leaf\\"]"]'


@pytest.mark.unmeasured
async def test_children_run_in_a_place_of_their_own_when_asked_to():
    pid = "__import__('os').getpid()"
    host = __import__("os").getpid()
    code = f"answer.update(content=[str({pid}), rlm_query({final(pid)!r})], ready=True)"
    mine, theirs = (await ask(run(code), environment="local", sub_environment="process")).answer
    assert int(mine) == host
    assert int(theirs) != host


async def test_an_unknown_place_for_children_is_refused_at_the_start():
    with pytest.raises(arlm.ConfigError, match="unknown environment 'moon'"):
        await ask(final("1"), sub_environment="moon")


# -- accounts ------------------------------------------------------------------------------------------------------------


def random_tree(rng: random.Random, depth: int) -> tuple[str, int]:
    """A program with children, and how many LM calls running it takes."""
    calls = 1
    lines = []
    for _ in range(rng.randint(0, 3)):
        many = rng.randint(1, 3)
        lines.append(f"llm_query_batched(['x'] * {many})")
        calls += many
    for _ in range(rng.randint(0, 2) if depth else 0):
        inner, below = random_tree(rng, depth - 1)
        many = rng.randint(1, 2)
        lines.append(f"rlm_query_batched([{inner!r}] * {many})")
        calls += below * many
    rng.shuffle(lines)
    return run("\n".join([*lines, "answer.update(content='done', ready=True)"])), calls


def check_sums(result: arlm.Result) -> int:
    """Every child's usage is a part of its parent's; returns the calls of the whole tree, counted by walking it."""
    below = sum(check_sums(one) for one in result.children)
    own = sum(len(turn["cells"]) for turn in result.trajectory()["turns"]) and len(result.trajectory()["turns"])
    plain = sum(cell["calls"] for turn in result.trajectory()["turns"] for cell in turn["cells"]) - len(result.children)
    assert result.usage.total.calls == own + plain + below
    assert result.usage.total.input_tokens == 7 * result.usage.total.calls
    assert result.usage.total.output_tokens == 3 * result.usage.total.calls
    assert result.cost_usd == pytest.approx(0.5 * result.usage.total.calls)
    return result.usage.total.calls


@pytest.mark.parametrize("seed", range(20))
async def test_the_usage_of_a_random_tree_is_what_the_model_counted(seed: int):
    lm = ProgramLM()
    program, calls = random_tree(random.Random(seed), 2)
    while len(program) > 1_900:
        seed += 100
        program, calls = random_tree(random.Random(seed), 2)
    result = await ask(program, lm=lm, max_depth=4, max_concurrency=3, max_repls=3)
    assert result.answer == "done"
    assert check_sums(result) == len(lm.seen) == calls


async def test_failures_and_cancellations_of_children_are_in_the_totals():
    class Failing(ProgramLM):
        async def reply(self, messages: list[Message]) -> str:
            if "fail" in messages[-1]["content"] and messages[0]["role"] != "system":
                raise arlm.BadRequest("no", provider="program")
            if "hang" in messages[-1]["content"] and messages[0]["role"] != "system":
                await asyncio.Event().wait()
            return await super().reply(messages)

    bad, slow = run("llm_query('fail'); answer.update(content='b', ready=True)"), run("llm_query('hang')")
    late = f"try: await asyncio.wait_for(rlm_query_async({slow!r}), 1)\nexcept asyncio.TimeoutError: r += ' late'"
    code = f"import asyncio\nr = rlm_query({bad!r})\n{late}\nanswer.update(content=r, ready=True)"
    result = await ask(run(code), lm=Failing())
    assert result.answer == "b late"
    total = result.usage.total
    assert (total.calls, total.failed, total.cancelled) == (5, 1, 1)
    first, second = result.children
    assert (first.usage.total.calls, first.usage.total.failed) == (2, 1)
    assert (second.stop_reason, second.answer, second.usage.total.cancelled) == ("cancelled", None, 1)


# -- no deadlock ---------------------------------------------------------------------------------------------------------


def chain(depth: int, width: int = 1) -> str:
    """A tree of children, each of which waits for those below it."""
    if depth == 0:
        return run("answer.update(content=llm_query('leaf'), ready=True)")
    return run(f"rs = rlm_query_batched([{chain(depth - 1, width)!r}] * {width})\nllm_query('x')\nanswer.update(content=rs[0], ready=True)")


@pytest.mark.parametrize("limits", [{"max_concurrency": 1}, {"max_repls": 1}, {"max_concurrency": 1, "max_repls": 1}])
async def test_one_call_at_a_time_is_enough_for_five_levels(limits: dict[str, int]):
    lm = ProgramLM()
    async with asyncio.timeout(60):
        result = await ask(chain(4), lm=lm, max_depth=6, **limits)
    assert result.answer == "ok: leaf"
    if "max_concurrency" in limits:
        assert lm.most_in_flight == 1


async def test_two_slots_are_enough_for_four_levels_with_every_parent_waiting():
    async with asyncio.timeout(60):
        result = await ask(chain(3, width=2), max_depth=5, max_repls=2)
    assert result.answer == "ok: leaf"
    assert result.usage.total.calls == 8 * 2 + 7 * 2


async def test_no_more_repls_run_at_once_than_allowed():
    class Watching(ProgramLM):
        most = 0

        async def reply(self, messages: list[Message]) -> str:
            if messages[0]["role"] != "system":
                self.most = max(self.most, self.in_flight)
                await asyncio.sleep(0.01)
            return await super().reply(messages)

    lm = Watching()
    leaf = run("answer.update(content=llm_query('leaf'), ready=True)")
    result = await ask(run(f"answer.update(content=rlm_query_batched([{leaf!r}] * 12), ready=True)"), lm=lm, max_repls=3)
    assert result.answer == ["ok: leaf"] * 12
    assert 1 < lm.most <= 3


# -- failures and limits -------------------------------------------------------------------------------------------------


async def test_a_childs_failure_is_data_for_its_parent_and_no_end_for_its_siblings():
    """The model of one fails, one has no code that works, one kills its own process."""
    dead = run("import os; os.kill(os.getpid(), 9)")
    code = f"answer.update(content=rlm_query_batched(['no program', {dead!r}, {final('7')!r}]), ready=True)"
    result = await ask(run(code))
    no_program, killed, fine = result.answer
    assert no_program.startswith("Error: BadRequest: this model only runs programs")
    assert killed.startswith("Error: BadRequest")
    assert fine == "7"
    assert [one.stop_reason for one in result.children] == ["failed", "failed", "answered"]
    assert result.children[0].error is not None
    assert "signal 9" in result.children[1].trajectory()["turns"][0]["cells"][0]["error"]
    assert "2 of 3" not in (result.trajectory()["turns"][0]["cells"][0]["error"] or "")
    assert len(result.trajectory()["turns"][0]["cells"][0]["failures"]) == 2


async def test_a_limit_reached_inside_a_child_ends_the_whole_tree_with_one_last_root_call():
    class Answering(ProgramLM):
        async def reply(self, messages: list[Message]) -> str:
            return "the best there is" if "Give your best answer" in messages[-1]["content"] else await super().reply(messages)

    events: list[AnyEvent] = []
    lm = Answering()
    greedy = run("while True: llm_query('x')")
    result = await ask(run(f"rlm_query_batched([{greedy!r}] * 3)"), lm=lm, max_calls=30, output_type=str, on_event=events.append)
    assert (result.answer, result.stop_reason) == ("the best there is", "max_calls")
    assert len(lm.seen) == result.usage.total.calls == 30
    assert [one.stop_reason for one in result.children] == ["max_calls"] * 3
    reached = [event.node for event in events if isinstance(event, LimitReached)]
    assert reached[-1] == "root"


async def test_a_limit_is_raised_with_the_children_in_the_partial_result():
    greedy = run("while True: llm_query('x')")
    with pytest.raises(arlm.CallLimit) as caught:
        await ask(run(f"rlm_query({greedy!r})"), max_calls=10, on_limit="raise")
    assert caught.value.partial is not None
    assert caught.value.partial.usage.total.calls == 9
    assert [one.stop_reason for one in caught.value.partial.children] == ["max_calls"]


async def test_a_timeout_ends_children_of_every_depth_and_says_how_far_they_were():
    class Hanging(ProgramLM):
        async def reply(self, messages: list[Message]) -> str:
            if messages[-1]["content"] == "leaf":
                await asyncio.Event().wait()
            return await super().reply(messages)

    lm = Hanging()
    with pytest.raises(arlm.RunTimeout) as caught:
        await ask(chain(2, width=2), lm=lm, max_depth=4, timeout=1.5)
    assert lm.in_flight == 0
    assert caught.value.partial is not None
    first = caught.value.partial.children[0]
    assert first.stop_reason == "cancelled"
    assert first.children[0].stop_reason == "cancelled"
    assert caught.value.partial.usage.total.cancelled == 4


async def test_a_child_that_could_not_begin_is_among_the_children_too():
    result = await ask(run("answer.update(content=rlm_query('q', context={}), ready=True)"))
    assert [(one.stop_reason, one.usage.total.calls) for one in result.children] == [("failed", 0)]
    assert "the context is empty" in (result.children[0].error or "")


async def test_max_errors_of_a_child_is_its_own():
    result = await ask(run(f"answer.update(content=rlm_query({run('1 / 0')!r}), ready=True)"), max_errors=1)
    assert result.answer.startswith("Error: ")
    assert "max_errors" in result.answer
    assert (result.stop_reason, result.children[0].stop_reason) == ("answered", "max_errors")


async def test_an_interrupted_cell_cancels_its_children():
    """A thread of the cell waits for a child while the cell itself burns its time."""

    class Hanging(ProgramLM):
        cancelled = 0

        async def reply(self, messages: list[Message]) -> str:
            if len(messages) > 2:
                return "```repl\nanswer.update(content='went on', ready=True)\n```"
            try:
                if messages[-1]["content"] == "hang":
                    await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            return await super().reply(messages)

    lm = Hanging()
    inner = run("llm_query('hang')")
    code = f"import threading, time\nthreading.Thread(target=rlm_query, args=[{inner!r}], daemon=True).start()\nwhile True: pass"
    result = await ask(run(code), lm=lm, cell_timeout=0.3)
    assert result.answer == "went on"
    assert lm.cancelled == 1
    assert result.children[0].stop_reason == "cancelled"


# -- what is told --------------------------------------------------------------------------------------------------------


async def test_events_name_the_node_and_follow_its_call():
    events: list[AnyEvent] = []
    inner = run(f"answer.update(content=rlm_query({final('1')!r}), ready=True)")
    await ask(run(f"llm_query('a'); answer.update(content=rlm_query({inner!r}), ready=True)"), max_depth=3, on_event=events.append)
    started = [event for event in events if isinstance(event, ChildStarted)]
    assert [(event.node, event.depth) for event in started] == [("root.2", 1), ("root.2.1", 2)]
    asked = [(event.node, event.call, event.function) for event in events if isinstance(event, SubcallStarted)]
    assert asked == [("root", 1, "llm_query"), ("root", 2, "rlm_query"), ("root.2", 1, "rlm_query")]
    ended = [event for event in events if isinstance(event, ChildEnded)]
    assert [(event.node, event.answer, event.usage["total"]["calls"]) for event in ended] == [("root.2.1", "1", 1), ("root.2", "1", 2)]


async def test_a_child_is_told_what_is_left_of_the_trees_budget_and_how_many_sub_calls_it_made():
    lm = ProgramLM()
    with pytest.raises(arlm.BadRequest):
        await ask(run(f"llm_query('a'); rlm_query({run('llm_query(1 and chr(97))')!r})"), lm=lm, max_calls=50)
    turns = [message["content"].rpartition("[Turn")[2] for call in lm.seen if call[0]["role"] == "system" for message in call[-1:]]
    assert turns[0].startswith(" 1 of 30. Left: 50 model calls")
    assert turns[1].startswith(" 1 of 30. Left: 47 model calls")
    assert "Sub-calls so far: 1." in turns[2]
    assert "Left: 45 model calls" in turns[2]


async def test_the_result_of_a_tree_is_plain_json():
    import json

    result = await ask(chain(2), max_depth=3)
    tree = json.loads(json.dumps(result.trajectory()))
    assert tree["children"][0]["children"][0]["node"] == "root.1.1"


async def test_a_session_has_children_in_every_question():
    async with arlm.RLM(model=ProgramLM(), max_depth=2, output_type=Any).session() as session:
        for number in range(3):
            result = await session.run(run(f"answer.update(content={child(str(number))}, ready=True)"), context="c")
            assert result.answer == str(number)
            assert len(result.children) == 1
