"""REPL slots of a tree."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from arlm.slots import Holder, ReplSlots


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_with_one_slot_a_chain_of_any_depth_goes_down_and_up():
    slots = ReplSlots(1)
    used = []

    async def descend(parent: Holder, depth: int) -> None:
        used.append(slots.used)
        if depth:
            async with slots.child_of(parent) as own:
                await descend(own, depth - 1)
        used.append(slots.used)

    await descend(Holder(), 20)
    assert set(used) == {1}


async def test_children_start_in_the_order_they_asked():
    slots, root, order = ReplSlots(2), Holder(), []
    leave = [asyncio.Event() for _ in range(6)]

    async def child(number: int) -> None:
        async with slots.child_of(root):
            order.append(number)
            await leave[number].wait()

    tasks = [asyncio.create_task(child(number)) for number in range(6)]
    await settle()
    assert order == [0, 1]
    assert slots.waiting == 4
    for number in range(6):
        leave[number].set()
        await settle()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4, 5]
    assert (slots.used, slots.waiting) == (1, 0)


@pytest.mark.parametrize("when", ["waiting", "granted in the same turn", "running"])
async def test_a_cancelled_child_leaves_its_slot_to_the_next(when: str):
    slots, root = ReplSlots(1), Holder()
    running, release = asyncio.Event(), asyncio.Event()

    async def child(hold: asyncio.Event) -> None:
        async with slots.child_of(root):
            running.set()
            await hold.wait()

    first = asyncio.create_task(child(release))
    await running.wait()
    victim = asyncio.create_task(child(asyncio.Event()))
    last = asyncio.create_task(child(release))
    await settle()
    if when == "waiting":
        victim.cancel()
    release.set()
    if when == "granted in the same turn":
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    if when == "running":
        await settle()
    victim.cancel()
    await asyncio.wait({first, victim, last}, timeout=5)
    assert last.done()
    assert not last.cancelled()
    assert victim.cancelled()
    assert (slots.used, slots.waiting, root.children) == (1, 0, 0)


async def test_a_parent_has_its_slot_back_before_a_waiting_child_gets_it():
    slots, root = ReplSlots(2), Holder()
    async with AsyncExitStack() as stack:
        parent = await stack.enter_async_context(slots.child_of(root))
        grandchild = AsyncExitStack()
        await grandchild.enter_async_context(slots.child_of(parent))
        sibling = asyncio.create_task(stack.enter_async_context(slots.child_of(root)))
        await settle()
        assert sibling.done()
        assert slots.used == 2
        waiting = asyncio.create_task(stack.enter_async_context(slots.child_of(root)))
        await grandchild.aclose()
        await settle()
        assert slots.used == 2, "the parent that goes on, and its sibling"
        assert not waiting.done()
        waiting.cancel()
        await settle()
    assert (slots.used, slots.waiting) == (1, 0)
