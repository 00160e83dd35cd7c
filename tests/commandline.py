"""The `arlm` command in a process of its own, as tests start it."""

import asyncio
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from arlm.clients.rows import ROWS

ARLM = str(Path(sysconfig.get_path("scripts")) / "arlm")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
NO_SERVERS = {"OLLAMA_HOST": "127.0.0.1:9", "VLLM_BASE_URL": "http://127.0.0.1:9/v1"}  # the discard port: nothing listens there
FURTHER = ("OPENAI_CUSTOM_HEADERS", "ANTHROPIC_CUSTOM_HEADERS", "GOOGLE_GENAI_API_VERSION")
ANSWER = "```repl\nanswer['content'] = 'forty-two'\nanswer['ready'] = True\n```"
# The installed command, but for two things that tests need: waits between retries of a millisecond, and a Ctrl-C that is not ignored
# because whoever started the tests ignored it.
QUICK = """
import functools, signal, sys
from arlm.clients import retry
retry.RetryPolicy = functools.partial(retry.RetryPolicy, first_wait=0.001)
signal.signal(signal.SIGINT, signal.default_int_handler)
from arlm.cli.main import main
sys.argv[0] = "arlm"
sys.exit(main())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


def clean_environment(**variables: str) -> dict[str, str]:
    """This process's environment without keys, base URLs, proxies and model servers of this machine; then `variables`."""
    taken = {name for row in ROWS.values() for name in row.all_variables}
    taken |= {*FURTHER, *PROXIES, *(name.lower() for name in PROXIES)}
    kept = {name: value for name, value in os.environ.items() if name not in taken}
    return {**kept, **NO_SERVERS, "COLUMNS": "120", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8", **variables}


async def start(*words: str, quick: bool = False, stdin: int | None = None, **variables: str) -> asyncio.subprocess.Process:
    """Start the command. `quick`: with the two changes above."""
    command = [sys.executable, "-c", QUICK] if quick else [ARLM]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *command,
        *words,
        stdin=asyncio.subprocess.DEVNULL if stdin is None else stdin,
        stdout=pipe,
        stderr=pipe,
        env=clean_environment(**variables),
        start_new_session=True,
    )


async def arlm(*words: str, quick: bool = False, given: bytes | None = None, **variables: str) -> Done:
    """Run the command to its end; `given` is its standard input."""
    process = await start(*words, quick=quick, stdin=None if given is None else asyncio.subprocess.PIPE, **variables)
    out, err = await process.communicate(given)
    assert process.returncode is not None
    return Done(code=process.returncode, out=out.decode(), err=err.decode())
