"""``import arlm`` in a fresh interpreter: milliseconds, and which packages it brings along."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

from measure import Benchmark, Figures

CODE = """
import json, sys, time
before = set(sys.modules)
began = time.perf_counter()
import {name}
took = time.perf_counter() - began
new = {{module.partition(".")[0] for module in set(sys.modules) - before}}
third = sorted(name for name in new if name not in sys.stdlib_module_names and not name.startswith("_") and name != "{name}")
print(json.dumps([took, len(set(sys.modules) - before), third]))
"""


def imported(name: str) -> tuple[float, int, list[str]]:
    took, modules, third = json.loads(
        subprocess.run([sys.executable, "-c", CODE.format(name=name)], check=True, capture_output=True).stdout
    )
    return took, modules, third


def case(name: str) -> Figures:
    took, modules, third = imported(name)
    return {"import_ms": took * 1000, "modules": modules, "third_party_packages": len(third)}


BENCHMARK = Benchmark(
    claim="`import arlm` in a fresh interpreter",
    cases={f"import {name}": partial(case, name) for name in ("arlm", "arlm.rlm", "asyncio", "anyio", "openai")},
    rounds=10,
    sampled=False,
)

if __name__ == "__main__":
    if "--case" not in sys.argv:
        BENCHMARK.notes.append(f"`import arlm` brings along: {', '.join(imported('arlm')[2]) or 'no third-party package'}.")
    BENCHMARK.main()
