"""Run the benchmarks, keep the figures in results.json, and write the tables of README.md anew.

``run_all.py [NAME…]`` runs those named and keeps the others' figures; without names it runs those that need nothing more than arlm;
``--tables`` only writes the tables. Stdout gets nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from measure import machine, table

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
README = HERE / "README.md"
BENCHMARKS = ("imports", "start", "fanout", "sequential", "contexts", "bombs", "providers")  # faults.py passes or fails; it has no table
NAMED = ("transports", "gateway", "docker")  # run when they are named: they take Flask by pip, minutes, an engine
BEGIN, END = "<!-- results: written by run_all.py -->", "<!-- end of results -->"


def main() -> None:
    parser = argparse.ArgumentParser(description="Run every benchmark and write its table into README.md.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(BENCHMARKS + NAMED)}")
    parser.add_argument("--rounds", type=int, help="fresh processes for each case, instead of each benchmark's own number")
    parser.add_argument("--tables", action="store_true", help="run nothing, write the tables from results.json")
    options = parser.parse_args()
    if unknown := set(options.names) - {*BENCHMARKS, *NAMED}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there is: {', '.join(BENCHMARKS + NAMED)}")
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    for name in [] if options.tables else options.names or BENCHMARKS:
        results[name] = {"machine": machine(), **measured(name, options.rounds)}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    write_tables(results)


def measured(name: str, rounds: int | None) -> dict[str, Any]:
    """Run one benchmark as a program of its own."""
    print(f"-- {name}", file=sys.stderr)
    command = [sys.executable, str(HERE / f"{name}.py"), *(["--rounds", str(rounds)] if rounds else [])]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def write_tables(results: dict[str, Any]) -> None:
    """Put the tables between the markers of README.md."""
    before, _, rest = README.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    parts = [section(name, results[name]) for name in (*BENCHMARKS, *NAMED) if name in results]
    README.write_text("\n\n".join([before + BEGIN, *parts, END + after]), "utf-8")


def section(name: str, result: dict[str, Any]) -> str:
    lines = [f"### {result['claim']}", f"`{name}.py`, {result['rounds']} fresh processes a case; {result['machine']}."]
    if result.get("target"):
        lines.append(f"Aimed at: {result['target']}.")
    return "\n\n".join(["\n".join(lines), table(result), *result.get("notes", ())])


if __name__ == "__main__":
    main()
