"""Things that live as long as their loop."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref

import pytest

from arlm import loopbound
from arlm.loopbound import on_loop_close, per_loop


class Pool:
    """A thing that points back at its loop, as connection pools do."""

    def __init__(self, closed: list[str], name: str = "pool") -> None:
        self.loop = asyncio.get_running_loop()
        self._closed = closed
        self._name = name
        on_loop_close(self.close)

    async def close(self) -> None:
        await asyncio.sleep(0)
        self._closed.append(self._name)


def test_one_loop_has_one_instance_a_key_and_another_loop_has_its_own() -> None:
    closed: list[str] = []

    async def main() -> tuple[Pool, Pool, Pool]:
        return per_loop("a", lambda: Pool(closed)), per_loop("a", lambda: Pool(closed)), per_loop("b", lambda: Pool(closed))

    first, again, other = asyncio.run(main())
    assert first is again
    assert first is not other
    assert asyncio.run(main())[0] is not first


def test_closers_run_at_the_loops_end_in_reverse_order() -> None:
    closed: list[str] = []

    async def main() -> None:
        for name in "abc":
            per_loop(name, lambda name=name: Pool(closed, name))  # type: ignore[misc]
        assert closed == []

    asyncio.run(main())
    assert closed == ["c", "b", "a"]


def test_a_closer_that_fails_or_hangs_is_logged_and_keeps_no_other_from_closing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loopbound, "CLOSE_S", 0.01)
    closed: list[str] = []

    async def fails() -> None:
        raise OSError("broken pipe")

    async def hangs() -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        Pool(closed)
        on_loop_close(fails)
        on_loop_close(hangs)

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert closed == ["pool"]
    assert "broken pipe" in caplog.text
    assert "TimeoutError" in caplog.text


def test_what_is_made_while_others_close_is_closed_too() -> None:
    closed: list[str] = []

    async def main() -> None:
        async def last_words() -> None:
            per_loop("late", lambda: Pool(closed, "late"))

        on_loop_close(last_words)

    asyncio.run(main())
    assert closed == ["late"]


def test_nothing_runs_while_the_loop_is_idle() -> None:
    async def main() -> int:
        per_loop("a", lambda: Pool([]))
        return len(asyncio.all_tasks())

    assert asyncio.run(main()) == 1


def test_a_loop_that_ended_is_freed_with_what_it_held() -> None:
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def main() -> None:
        loops.append(weakref.ref(per_loop("a", lambda: Pool([])).loop))

    for _ in range(3):
        asyncio.run(main())
    gc.collect()
    assert [loop() for loop in loops] == [None, None, None]


def test_a_loop_closed_without_its_shutdown_is_forgotten_when_the_next_one_comes() -> None:
    async def main() -> None:
        per_loop("a", lambda: Pool([]))

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    abandoned = weakref.ref(loop)
    del loop
    asyncio.run(main())
    gc.collect()
    assert abandoned() is None


def test_many_loops_in_many_threads_do_not_see_each_other() -> None:
    closed: list[str] = []
    pools: list[Pool] = []
    together = threading.Barrier(8)

    async def main() -> None:
        together.wait()
        for key in range(50):
            pool = per_loop(key, lambda: Pool(closed))
            assert per_loop(key, lambda: Pool(closed)) is pool
            assert pool.loop is asyncio.get_running_loop()
            pools.append(pool)
            await asyncio.sleep(0)

    threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, pools))) == len(closed) == 400


def test_outside_a_loop_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        per_loop("a", object)
