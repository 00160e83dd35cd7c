"""rlms, through its public interface; two things that it has no option for are set from outside, where a row says so.

``batch``: calls in flight of one ``llm_query_batched`` (its handler's parameter, which RLM does not pass on).
``chdir``: ``"off"`` leaves out the change of the working directory around each cell. It is process-wide, so that runs at once fail on
directories that others have removed.
"""

from __future__ import annotations

import contextlib
import functools
import os

from driver import Job, in_threads, main


class Rlms:
    def __init__(self, job: Job) -> None:
        import rlm.core.rlm as core
        from rlm.environments.local_repl import LocalREPL

        self._options = job["options"]
        if "batch" in job:
            core.LMHandler = functools.partial(core.LMHandler, batch_max_concurrent=job["batch"])
        if job.get("chdir") == "off":
            LocalREPL._temp_cwd = lambda _repl: contextlib.nullcontext()
        self._rlm = core.RLM
        self._backend = {"model_name": "bench", "base_url": os.environ["PROVIDER_URL"], "api_key": "none"}

    def ask(self, question: str, context: str) -> str:
        run = self._rlm(backend="openai", backend_kwargs=self._backend, **self._options)
        return str(run.completion(context, root_prompt=question).response)

    def ask_all(self, question: str, contexts: list[str]) -> list[str]:
        return in_threads(lambda context: self.ask(question, context), contexts)


if __name__ == "__main__":
    main(Rlms)
