"""Cases about sampling options: translated for each provider, or refused before anything is sent."""

# ruff: noqa: D103 - the name of a case is its claim

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .lm_bench import at
from .lm_case import Cases

if TYPE_CHECKING:
    from .lm_bench import Bench

CASES = Cases()
case = CASES.case

OPTIONS: Mapping[str, Any] = {
    "temperature": 0.25,
    "top_p": 0.75,
    "max_tokens": 99,
    "stop": ["END", "STOP"],
    "seed": 17,
    "reasoning_effort": "low",
}
IMPOSSIBLE: tuple[dict[str, Any], ...] = (
    {"temperature": "hot"},
    {"temperature": float("nan")},
    {"temperature": -1},
    {"temperature": True},
    {"top_p": 1.5},
    {"max_tokens": 0},
    {"max_tokens": 1.5},
    {"max_tokens": True},
    {"stop": ""},
    {"stop": [1]},
    {"stop": {"a", "b"}},
    {"seed": "1"},
    {"reasoning_effort": "a lot"},
    {"extra_body": "text"},
    {"extra_body": [("user", "me")]},
)


async def is_refused(bench: Bench, sampling: Mapping[str, Any], *words: str) -> None:
    """Both the look beforehand and the call refuse the options, and nothing is sent or counted."""
    for ask in (_looked_at, _asked):
        said = await _refusal(ask(bench, sampling))
        assert said is not None, f"{ask.__name__}: {sampling} was taken"
        for word in words:
            assert word in said
    assert (await bench.stats())["calls"] == 0
    assert bench.lm.get_usage_summary().total.calls == 0


async def _refusal(asked: Awaitable[None]) -> str | None:
    try:
        await asked
    except ConfigError as error:
        return str(error)
    return None


async def _looked_at(bench: Bench, sampling: Mapping[str, Any]) -> None:
    bench.lm.check_sampling(sampling)


async def _asked(bench: Bench, sampling: Mapping[str, Any]) -> None:
    await bench.ask(sampling=sampling)


@case("sampling", "server")
async def each_option_arrives_where_the_provider_has_it(bench: Bench) -> None:
    for name, place in bench.subject.places.items():
        sampling = {name: OPTIONS[name]}
        bench.lm.check_sampling(sampling)
        await bench.ask(sampling=sampling)
        found = at(await bench.body(), place)
        assert (name, str(found).lower()) == (name, str(OPTIONS[name]).lower())


@case("sampling", "server")
async def all_options_arrive_together(bench: Bench) -> None:
    sampling = {name: OPTIONS[name] for name in bench.subject.places}
    assert (await bench.ask("all", sampling=sampling)).text == "all"
    body = await bench.body()
    for name, place in bench.subject.places.items():
        assert at(body, place) is not None, name


@case("sampling", "server")
async def one_stop_text_is_a_stop_text(bench: Bench) -> None:
    if place := bench.subject.places.get("stop"):
        await bench.ask(sampling={"stop": "END"})
        assert at(await bench.body(), place) in ("END", ["END"])


@case("sampling", "server")
async def without_options_nothing_is_said_of_them(bench: Bench) -> None:
    for sampling in (None, {}, dict.fromkeys(OPTIONS)):
        await bench.ask(sampling=sampling)
        body = await bench.body()
        told = {name for name, place in bench.subject.places.items() if at(body, place) is not None}
        assert told <= {"max_tokens"}  # which one provider insists on


@case("sampling")
async def an_option_that_the_provider_does_not_have_is_refused_by_name(bench: Bench) -> None:
    for name in OPTIONS.keys() - bench.subject.places.keys():
        await is_refused(bench, {name: OPTIONS[name]}, name)


@case()
async def an_unknown_option_is_refused(bench: Bench) -> None:
    await is_refused(bench, {"temprature": 1})


@case("sampling")
async def an_unknown_option_is_refused_with_the_names_that_there_are(bench: Bench) -> None:
    await is_refused(bench, {"temprature": 1}, "temprature", *bench.subject.places)


@case("sampling")
async def a_value_that_cannot_be_is_refused(bench: Bench) -> None:
    for sampling in IMPOSSIBLE:
        await is_refused(bench, sampling, next(iter(sampling)))


@case("sampling", "server")
async def further_fields_of_the_request_go_along(bench: Bench) -> None:
    extra = {"x_of_ours": {"deep": [1, None, "é"]}}
    before = dict(extra)
    await bench.ask(sampling={"max_tokens": 99, "extra_body": extra})
    body = await bench.body()
    assert body["x_of_ours"] == {"deep": [1, None, "é"]}
    assert at(body, bench.subject.places["max_tokens"]) == 99
    assert extra == before


@case("sampling", "server")
async def further_fields_go_beside_the_options_that_stand_in_the_same_object(bench: Bench) -> None:
    place = bench.subject.places["max_tokens"]
    outer, _, _ = place.rpartition(".")
    extra = {"x_of_ours": 1} if not outer else {outer: {"x_of_ours": 1}}
    await bench.ask(sampling={"max_tokens": 99, "extra_body": extra})
    body = await bench.body()
    assert at(body, place) == 99
    assert at(body, f"{outer}.x_of_ours".strip(".")) == 1


@case("sampling")
async def further_fields_may_not_replace_what_is_asked(bench: Bench) -> None:
    asked = {"chat": "messages", "responses": "input", "anthropic": "messages", "gemini": "contents"}.get(bench.subject.wire)
    if asked is not None:
        await is_refused(bench, {"extra_body": {asked: []}}, asked)


@case("sampling", "server")
async def what_json_cannot_carry_is_refused(bench: Bench) -> None:
    said = await _refusal(_asked(bench, {"extra_body": {"x_of_ours": {1, 2}}}))
    assert said is not None, "a set was sent"
    assert "JSON" in said
    assert (await bench.stats())["calls"] == 0
