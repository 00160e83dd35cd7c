"""arlm beside its peers, each in a virtual environment of its own, against the same scripted provider on loopback.

    python benchmarks/peers.py                      # everything; writes peers.json, peers.md and peers.svg beside this file
    python benchmarks/peers.py --quick              # small sizes, to see that everything works; writes nothing unless --out says where
    python benchmarks/peers.py --only fanout,start  # those scenes; the others keep the figures they have in peers.json
    python benchmarks/peers.py --report             # runs nothing; writes table and picture anew from peers.json

The first run makes the environments in .benchmarks/ by pip. benchmarks/README.md says how to read the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from measure import machine
from peers import chart, report, rows, running, venvs

HERE = Path(__file__).parent
README = HERE / "README.md"
BEGIN, END = "<!-- peers: written by peers.py -->", "<!-- end of peers -->"
CEILING_CALLS = 20_000
SHORT_S = 8.0  # a row that takes less is run once more for its memory, looked at all the time and not timed
SHOWN = ("wall_s", "cell_s", "first_ms", "later_ms", "cpu_s", "peak_mib", "left_behind")


def main() -> None:
    options = _parser().parse_args()
    out: Path = options.out or HERE / "peers.json"
    if not options.report:
        kept = json.loads(out.read_text("utf-8")) if out.exists() and options.only else {}
        result = asyncio.run(measured(options, kept))
        if options.quick and options.out is None:
            print(report.markdown(result))
            return
        out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    result = json.loads(out.read_text("utf-8"))
    out.with_suffix(".md").write_text(report.markdown(result), "utf-8")
    out.with_suffix(".svg").write_text(chart.svg(result), "utf-8")
    if options.out is None:
        _into_readme(report.markdown(result))
    print(f"written: {out}, and beside it .md and .svg", file=sys.stderr)


def _into_readme(text: str) -> None:
    """Put table and picture between the markers of README.md, where it has them."""
    before, begins, rest = README.read_text("utf-8").partition(BEGIN)
    _, ends, after = rest.partition(END)
    if begins and ends:
        README.write_text(f"{before}{BEGIN}\n\n![a bar for each row](peers.svg)\n\n{text}\n{END}{after}", "utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="scenes, by the word their key begins with: fanout,sequential,children,start,runs,context,busy")
    parser.add_argument("--peers", default="arlm,rlms,dspy", help="frameworks, by name")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--rounds", type=int, default=1, help="fresh processes for each row; medians and spreads are told")
    parser.add_argument("--jitter", type=float, default=0.0, metavar="S", help="seconds added to each latency at most")
    parser.add_argument("--error-rate", action="append", default=[], metavar="FAULT=RATE", help="of the provider, such as 429=0.01")
    parser.add_argument("--folder", type=Path, default=HERE.parent / ".benchmarks", help="where the peers' environments are kept")
    parser.add_argument("--out", type=Path, help="the JSON file; table and picture go beside it")
    parser.add_argument("--report", action="store_true", help="run nothing")
    return parser


async def measured(options: argparse.Namespace, kept: dict[str, Any]) -> dict[str, Any]:
    """Run the rows of the scenes asked for, round by round; scenes that were not asked for keep their figures."""
    began = time.monotonic()
    wanted = (options.only or "").split(",")
    named = options.peers.split(",")
    frameworks = {name: venvs.here() if name == "arlm" else venvs.installed(name, options.folder.resolve()) for name in named}
    chosen = [scene for scene in rows.scenes(rows.QUICK if options.quick else rows.Sizes()) if scene.key.startswith(tuple(wanted))]
    ceiling = await running.ceiling(CEILING_CALLS // 10 if options.quick else CEILING_CALLS)
    print(f"-- the provider carries {ceiling:,.0f} calls/s", file=sys.stderr)
    faults = _faults(options)
    seen: dict[tuple[str, str], list[running.Figures]] = {}
    for number in range(options.rounds):
        for scene in chosen:
            for row in scene.rows:
                if row.peer in frameworks:
                    figures = await _figures(scene, row, frameworks[row.peer], faults, deep=number == 0 and not options.quick)
                    seen.setdefault((scene.key, row.label), []).append(figures)
    told = {
        scene.key: {
            "title": scene.title,
            "rows": [_told(row, seen[scene.key, row.label]) for row in scene.rows if (scene.key, row.label) in seen],
        }
        for scene in chosen
    }
    return {
        "machine": machine(),
        "versions": {name: one.version or "not installed" for name, one in frameworks.items()},
        "ceiling": ceiling,
        "faults": faults,
        "rounds": options.rounds,
        "took_s": time.monotonic() - began,
        "scenes": {**kept.get("scenes", {}), **told},
    }


def _faults(options: argparse.Namespace) -> dict[str, Any]:
    rates = {fault: float(rate) for fault, _, rate in (pair.partition("=") for pair in options.error_rate)}
    return {**({"jitter": options.jitter} if options.jitter else {}), **({"error_rates": rates} if rates else {})}


async def _figures(scene: rows.Scene, row: rows.Row, framework: venvs.Installed, faults: dict[str, Any], *, deep: bool) -> running.Figures:
    """One timed play of a row, and where it is short one more for its memory."""
    if framework.failed:
        return {"failed": framework.failed}
    figures = await running.play(row, framework.python, faults=faults)
    if deep and figures.get("wall_s", SHORT_S) < SHORT_S:
        again = await running.play(row, framework.python, faults=faults, dense=True)
        figures["peak_mib"] = max(figures["peak_mib"], again.get("peak_mib", 0.0))
    _say(scene, row, figures)
    return figures


def _say(scene: rows.Scene, row: rows.Row, figures: running.Figures) -> None:
    numbers = [f"{name} {figures[name]:.2f}" for name in SHOWN if name in figures]
    right = [f"{figures['right']} of {figures['of']} right"] if "right" in figures else []
    print(f"{scene.key}: {row.label}: {figures.get('failed') or ', '.join(numbers + right)}", file=sys.stderr, flush=True)


def _told(row: rows.Row, plays: list[running.Figures]) -> dict[str, Any]:
    """A row as it is kept: medians and spreads over its rounds, scaled to the whole; what went wrong in any of them."""
    good = [_scaled(play, row.scale) for play in plays if "failed" not in play]
    names = dict.fromkeys(name for play in good for name, value in play.items() if isinstance(value, (int, float)))
    figures = {}
    for name in names:
        values = [play[name] for play in good if name in play]
        spread = {"median": statistics.median(values), "low": min(values), "high": max(values)}
        figures[name] = {part: float(f"{value:.5g}") for part, value in spread.items()}
    wrong = [play.get("failed") or play.get("wrong") for play in plays]
    return {
        "peer": row.peer,
        "setting": row.setting,
        "group": row.group,
        "ideal_s": row.ideal,
        "scale": row.scale,
        "latency_s": row.script.get("latency", 0.0),
        "limit_s": row.limit,
        "figures": figures,
        "failed": len(plays) - len(good),
        "wrong": next(filter(None, wrong), None),
    }


def _scaled(play: running.Figures, scale: float) -> running.Figures:
    """What the whole would have taken: its cell and its CPU so many times as long, the rest as it was."""
    if scale == 1:
        return play
    longer = play["cell_s"] * (scale - 1)
    return {**play, "cell_s": play["cell_s"] + longer, "wall_s": play["wall_s"] + longer, "cpu_s": play["cpu_s"] * scale}


if __name__ == "__main__":
    main()
