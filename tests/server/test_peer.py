"""A connection that keeps the rules: many calls, both directions, any order, cancels, bounded memory."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from raw_guest import Host, RawGuest

from arlm.guest import wire
from arlm.server import connection, heavy, peer
from arlm.server.peer import CallError, PeerLost


async def answers(guest, count: int) -> dict[int, wire.Message]:
    return {message["id"]: message for message in [await guest.receive() for _ in range(count)]}


async def test_many_calls_are_under_way_at_once_and_answered_in_any_order(host: Host) -> None:
    guest, known = await host.guest()
    await guest.send(
        *({"id": n, "call": "hold", "args": {"value": n}} for n in range(1, 301)), {"id": 1000, "call": "echo", "args": {"value": 0}}
    )
    assert await guest.receive() == {"id": 1000, "ok": 0}
    await host.until(lambda: host.under_way == 300)
    assert known.calls_under_way == 300
    host.release.set()
    assert {number: message["ok"] for number, message in (await answers(guest, 300)).items()} == {n: n for n in range(1, 301)}
    assert known.calls_under_way == 0


async def test_the_hosts_calls_are_answered_in_any_order(host: Host) -> None:
    guest, known = await host.guest()
    asked = [asyncio.ensure_future(known.call("double", {"n": n})) for n in range(50)]
    requests = [await guest.receive() for _ in range(50)]
    await guest.send(*({"id": request["id"], "ok": 2 * request["args"]["n"]} for request in reversed(requests)))
    assert await asyncio.gather(*asked) == [2 * n for n in range(50)]


async def test_both_sides_may_use_the_same_ids(host: Host) -> None:
    guest, known = await host.guest()
    asked = known.start_call("theirs", {})
    request = await guest.receive()
    await guest.send({"id": request["id"], "call": "echo", "args": {"value": "mine"}}, {"id": request["id"], "ok": "theirs"})
    assert await guest.receive() == {"id": request["id"], "ok": "mine"}
    assert await asked == "theirs"


async def test_a_cancel_of_the_guest_cancels_the_work_and_is_answered(host: Host) -> None:
    guest, known = await host.guest()
    await guest.send({"id": 1, "call": "hang", "args": {}}, {"id": 2, "call": "hold", "args": {"value": 2}})
    await host.until(lambda: host.under_way == 2)
    await guest.send({"cancel": 1})
    assert (await guest.receive())["error"]["message"] == "hang: cancelled"
    assert host.cancelled == ["hang"]
    host.release.set()
    assert await guest.receive() == {"id": 2, "ok": 2}
    assert known.lost is None


async def test_a_cancel_that_comes_with_its_request_cancels_it(host: Host) -> None:
    guest, _ = await host.guest()
    await guest.send(b"".join([*wire.encode({"id": 1, "call": "hang", "args": {}}), *wire.encode({"cancel": 1})]))
    assert (await guest.receive())["error"]["message"] == "hang: cancelled"


async def test_a_cancelled_call_of_the_host_sends_a_cancel_and_forgets_the_answer(host: Host) -> None:
    guest, known = await host.guest()
    with anyio.move_on_after(0.01):
        await known.call("slow", {})
    request = await guest.receive()
    assert await guest.receive() == {"cancel": request["id"]}
    await guest.send({"id": request["id"], "ok": "too late"})
    await guest.send({"id": 1, "call": "echo", "args": {"value": "still here"}})
    assert (await guest.receive())["ok"] == "still here"


async def test_forgetting_an_answered_call_sends_nothing(host: Host) -> None:
    guest, known = await host.guest()
    asked = known.start_call("quick", {})
    await guest.send({"id": (await guest.receive())["id"], "ok": 1})
    assert await asked == 1
    known.forget(asked)
    known.note({"note": "next"})
    assert await guest.receive() == {"note": "next"}


async def test_notes_reach_their_listener(host: Host) -> None:
    guest, known = await host.guest()
    heard: asyncio.Queue = asyncio.Queue()
    known.on_note = heard.put_nowait
    await guest.send({"note": "output", "text": "x"})
    assert await heard.get() == {"note": "output", "text": "x"}


async def test_values_of_many_megabytes_go_both_ways(host: Host) -> None:
    guest, known = await host.guest()
    big = "\U0001f600\ud83d" + "x" * (3 * wire.FRAGMENT_CHARS)
    asked = known.start_call("big", {"value": big})
    request = await guest.receive()
    assert request["args"]["value"] == big
    await guest.send({"id": request["id"], "ok": big})
    assert await asked == big


async def test_an_answer_that_cannot_be_sent_is_an_error_answer(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    guest, known = await host.guest()
    await guest.send({"id": 1, "call": "odd", "args": {}})
    assert (await guest.receive())["error"]["type"] == "TypeError"
    monkeypatch.setattr(wire.encode, "__defaults__", (1000,))
    monkeypatch.setattr(wire, "FRAGMENT_CHARS", 500)
    await guest.send({"id": 2, "call": "echo", "args": {"value": "x" * 900}})
    answer = await guest.receive()
    assert answer["id"] == 2
    assert known.lost is None


async def test_arguments_that_cannot_be_sent_raise_and_leave_the_connection_whole(host: Host) -> None:
    guest, known = await host.guest()
    for value, error in (({1}, TypeError), (b"x", TypeError)):
        with pytest.raises(error):
            known.start_call("f", {"value": value})
    asked = known.start_call("f", {})
    await guest.send({"id": (await guest.receive())["id"], "ok": 1})
    assert await asked == 1


async def test_requests_before_a_run_and_after_it_get_an_error(host: Host) -> None:
    ticket = host.ticket()
    guest = await host.dial()
    await guest.hello(ticket.token)
    known = await ticket.peer()
    request = {"id": 1, "call": "echo", "args": {"value": 1}}
    await guest.send(request)
    assert (await guest.receive())["error"]["message"] == "echo: no run is active"
    known.serve(host.tasks, host.answer)
    await guest.send(request)
    assert (await guest.receive())["ok"] == 1
    await guest.send({"id": 2, "call": "hang", "args": {}})
    await host.until(lambda: host.under_way == 1)
    known.stop_serving()
    assert (await guest.receive())["error"]["message"] == "hang: cancelled"
    await guest.send(request)
    assert (await guest.receive())["error"]["message"] == "echo: no run is active"


async def test_a_second_run_answers_where_the_first_one_ended(host: Host) -> None:
    ticket = host.ticket()
    guest = await host.dial()
    await guest.hello(ticket.token)
    known = await ticket.peer()
    for value in range(2):
        async with anyio.create_task_group() as run:
            known.serve(run, host.answer)
            await guest.send({"id": 1, "call": "echo", "args": {"value": value}}, {"id": 2, "call": "hang", "args": {}})
            assert (await guest.receive())["ok"] == value
            await host.until(lambda: host.under_way == 1)
            run.cancel_scope.cancel()
        assert (await guest.receive())["error"]["message"] == "hang: cancelled"


async def test_a_run_that_ends_answers_what_was_not_begun(host: Host) -> None:
    ticket = host.ticket()
    guest = await host.dial()
    await guest.hello(ticket.token)
    known = await ticket.peer()
    async with anyio.create_task_group() as run:
        known.serve(run, host.answer)
        await asyncio.sleep(0)  # the dispatching task waits for requests now
        run.cancel_scope.cancel()
        known.receive({"id": 1, "call": "echo", "args": {"value": 1}}, 10)
    assert (await guest.receive())["error"]["message"] == "echo: cancelled"
    assert known.calls_under_way == 0
    await guest.send({"id": 1, "call": "echo", "args": {"value": 1}})
    assert (await guest.receive())["error"]["message"] == "echo: no run is active"


async def test_a_guest_with_too_much_under_way_is_not_read_until_some_is_answered(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "MAX_CALL_BYTES", 1_000_000)
    guest, known = await host.guest()
    for number in range(1, 6):
        await guest.send({"id": number, "call": "hold", "args": {"value": "x" * 300_000}})
    await host.until(lambda: host.under_way == 4)
    transport = known._transport
    await guest.send({"id": 6, "call": "echo", "args": {"value": "waits its turn"}})
    with anyio.move_on_after(0.05):
        await host.until(lambda: host.under_way > 4)
    assert not transport.is_reading()
    assert known.calls_under_way == 4
    host.release.set()
    assert (await answers(guest, 6))[6]["ok"] == "waits its turn"
    assert transport.is_reading()


async def served(host: Host, answer: peer.Answer) -> tuple[RawGuest, peer.Peer]:
    """A guest whose requests get this answer."""
    ticket = host.ticket()
    guest = await host.dial()
    await guest.hello(ticket.token)
    known = await ticket.peer()
    known.serve(host.tasks, answer)
    return guest, known


def cyclic() -> list:
    loop: list = []
    loop.append(loop)
    return loop


def deep() -> list:
    value: list = []
    for _ in range(100_000):
        value = [value]
    return value


async def raises(error: BaseException) -> None:
    raise error


async def awaits_what_was_cancelled() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def gives(value: object) -> object:
    return value


ODD_ANSWERS = {
    "an error of the host": (
        lambda: raises(ZeroDivisionError("a secret")),
        "RuntimeError",
        "odd: it failed on the host (ZeroDivisionError)",
    ),
    "a CancelledError of its own": (lambda: raises(asyncio.CancelledError()), "RuntimeError", "odd: it was cancelled from within"),
    "a future that was cancelled": (awaits_what_was_cancelled, "RuntimeError", "odd: it was cancelled from within"),
    "a value that holds itself": (lambda: gives(cyclic()), None, None),
    "a value too deep": (lambda: gives(deep()), "RecursionError", None),
    "a set": (lambda: gives({1}), "TypeError", None),
    "a set in much text": (lambda: gives(["x" * heavy.LIGHT_BYTES, {1}]), "TypeError", None),
}


@pytest.mark.parametrize(("make", "kind", "text"), ODD_ANSWERS.values(), ids=ODD_ANSWERS)
async def test_an_answer_that_goes_wrong_is_an_error_answer_and_the_others_go_on(host: Host, make, kind, text) -> None:
    async def answer(method: str, args: dict) -> object:
        return await (make() if method == "odd" else host.answer(method, args))

    guest, known = await served(host, answer)
    await guest.send({"id": 1, "call": "hold", "args": {"value": "unharmed"}}, {"id": 2, "call": "odd", "args": {}})
    message = await guest.receive()
    assert message["id"] == 2
    assert kind is None or message["error"]["type"] == kind
    assert text is None or message["error"]["message"] == text
    assert "secret" not in str(message)
    host.release.set()
    assert (await guest.receive())["ok"] == "unharmed"
    assert known.lost is None


@pytest.mark.parametrize("method", ["hang", "hold"])
async def test_requests_above_the_number_admitted_wait_and_are_all_answered(
    host: Host, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(peer, "ADMITTED", 10)
    guest, known = await host.guest()
    await guest.send(*({"id": n, "call": method, "args": {"value": n}} for n in range(1, 301)), {"cancel": 300})
    await host.until(lambda: known.calls_under_way == 300 and host.under_way == 10)
    assert host.most == 10
    if method == "hold":
        host.release.set()
        assert {n: message.get("ok") for n, message in (await answers(guest, 300)).items()} == {n: n for n in range(1, 300)} | {300: None}
    else:
        known.cancel_calls()
        assert all(message["error"]["message"] == "hang: cancelled" for message in (await answers(guest, 300)).values())
        assert len(host.cancelled) == 10  # the others were never begun
    assert known.calls_under_way == 0


async def test_a_guest_with_too_many_requests_is_not_read_until_half_of_them_are_answered(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "MAX_CALLS", 100)
    guest, known = await host.guest()
    await guest.send(*({"id": n, "call": "hold", "args": {"value": n}} for n in range(1, 1001)))
    await host.until(lambda: host.under_way == 100)
    assert known.calls_under_way == 100
    assert not known._transport.is_reading()
    host.release.set()
    assert {number: message["ok"] for number, message in (await answers(guest, 1000)).items()} == {n: n for n in range(1, 1001)}
    assert known.lost is None


async def test_a_run_that_ends_answers_all_that_waited(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "ADMITTED", 10)
    ticket = host.ticket()
    guest = await host.dial()
    await guest.hello(ticket.token)
    known = await ticket.peer()
    async with anyio.create_task_group() as run:
        known.serve(run, host.answer)
        await guest.send(*({"id": n, "call": "hang", "args": {}} for n in range(1, 301)))
        await host.until(lambda: known.calls_under_way == 300 and host.under_way == 10)
        run.cancel_scope.cancel()
    assert {message["error"]["message"] for message in (await answers(guest, 300)).values()} == {"hang: cancelled"}
    assert known.calls_under_way == 0


@pytest.mark.parametrize(
    "flood", [{"note": ""}, {"id": 1, "call": "echo", "args": {}}, {"id": 1, "ok": 1}], ids=["notes", "one id again and again", "answers"]
)
async def test_the_loop_gets_a_turn_between_the_messages_of_a_flood(host: Host, flood: wire.Message) -> None:
    guest, known = await host.guest()
    handed = turns = most = 0

    def count(real):
        def receive(message: wire.Message, size: int) -> None:
            nonlocal handed
            handed += 1
            real({"note": ""} if "call" in message else message, size)

        return receive

    known.receive = count(known.receive)  # type: ignore[method-assign]
    known.on_note = lambda _note: None
    guest.writer.write(b"".join(wire.encode(flood)) * 20_000)
    while handed < 20_000:
        before = handed
        await asyncio.sleep(0)
        turns, most = turns + 1, max(most, handed - before)
    assert most <= connection.TURN_MESSAGES
    assert turns >= 20_000 / connection.TURN_MESSAGES


async def test_messages_keep_their_order_around_a_large_one(host: Host) -> None:
    guest, known = await host.guest()
    heard: asyncio.Queue = asyncio.Queue()
    known.on_note = heard.put_nowait
    large = {"note": "large", "text": "x" * (3 * wire.FRAGMENT_CHARS)}
    medium = {"note": "medium", "text": "y" * heavy.LIGHT_BYTES}
    sent = [{"note": "first"}, large, {"note": "second"}, medium, {"note": "third"}]
    await guest.send(b"".join(b"".join(wire.encode(message)) for message in sent))
    assert [await heard.get() for _ in sent] == sent


async def test_a_large_message_is_read_to_its_end_when_the_guest_leaves_right_after_it(host: Host) -> None:
    guest, known = await host.guest()
    asked = known.start_call("f", {})
    number = (await guest.receive())["id"]
    await guest.send({"id": number, "ok": "x" * (2 * wire.FRAGMENT_CHARS)})
    await guest.close()
    assert len(await asked) == 2 * wire.FRAGMENT_CHARS
    assert await host.lost(known) == "the connection was closed by the other side"


async def test_losing_a_peer_is_told_once_with_the_first_reason(host: Host) -> None:
    guest, known = await host.guest()
    asked = known.start_call("f", {})
    known.break_off("the first reason")
    known.break_off("the second")
    known.lose("the third")
    assert known.lost == "the first reason"
    assert await guest.receive()
    assert await guest.ended() == "the first reason"
    with pytest.raises(PeerLost, match="the first reason"):
        await asked
    known.note({"note": "into the void"})
    with pytest.raises(PeerLost, match="the first reason"):
        await known.call("f", {})


def test_a_call_error_is_no_error_of_ours() -> None:
    error = CallError("KeyError", "text")
    assert (error.kind, str(error)) == ("KeyError", "text")
