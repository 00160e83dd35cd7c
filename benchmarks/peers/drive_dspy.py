"""dspy.RLM on its local interpreter, through its public interface; its default interpreter needs Deno and is not measured.

What it has no option for is set from outside, where a row says so. ``workers``: threads of one ``llm_query_batched``, and as many
connections of its HTTP transport.
"""

from __future__ import annotations

import functools
import os

from driver import Job, in_threads, main


class Dspy:
    def __init__(self, job: Job) -> None:
        import dspy

        kind = dspy.RLM
        if "workers" in job:
            kind = _raised(dspy, job["workers"])
        lm = dspy.LM("openai/bench", api_base=os.environ["PROVIDER_URL"], api_key="none", cache=False)
        dspy.configure(lm=lm)
        interpreter = functools.partial(dspy.LocalInterpreter, **job.get("interpreter", {}))
        self._rlm = kind("context, query -> answer", interpreter_factory=interpreter, **job["options"])

    def ask(self, question: str, context: str) -> str:
        return str(self._rlm(context=context, query=question).answer)

    def ask_all(self, question: str, contexts: list[str]) -> list[str]:
        return in_threads(lambda context: self.ask(question, context), contexts)


def _raised(dspy, workers: int):
    """``dspy.RLM`` with that many threads a batch, on a transport with that many connections."""
    from dspy._vendor.lm15.transports import StdlibTransport

    StdlibTransport.__init__.__kwdefaults__["max_connections"] = workers

    class Raised(dspy.RLM):
        def _make_llm_tools(self, budget=None, max_workers=workers):
            return super()._make_llm_tools(budget, max_workers)

    return Raised


if __name__ == "__main__":
    main(Dspy)
