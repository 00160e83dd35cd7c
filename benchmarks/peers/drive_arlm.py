"""arlm, through its public interface."""

from __future__ import annotations

import asyncio
import os

from driver import Job, main


class Arlm:
    def __init__(self, job: Job) -> None:
        import arlm

        os.environ["OPENAI_BASE_URL"] = os.environ["PROVIDER_URL"]
        self._rlm = arlm.RLM(model="openai/bench", **job["options"])
        self._loop = asyncio.Runner()  # one loop for all runs, as in a program

    def ask(self, question: str, context: str) -> str:
        return self._loop.run(self._answer(question, context))

    def ask_all(self, question: str, contexts: list[str]) -> list[str]:
        async def all_of_them() -> list[str | BaseException]:
            return await asyncio.gather(*[self._answer(question, context) for context in contexts], return_exceptions=True)

        return [answer if isinstance(answer, str) else f"failed: {answer!r}" for answer in self._loop.run(all_of_them())]

    async def _answer(self, question: str, context: str) -> str:
        return str((await self._rlm.run(question, context=context)).answer)


if __name__ == "__main__":
    main(Arlm)
