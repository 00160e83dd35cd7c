"""What the drivers share: the scenes as they are played through one framework. Standard library only, run with that framework's Python.

A driver is started with its job as JSON in its first argument, plays it, and writes one line of JSON: its figures, or what went wrong.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from markers import PLAY, WARM_UP
from meter import loopback_only, spending

Job = dict[str, Any]
Figures = dict[str, Any]

ENDING = "NEEDLE"
LINE = "The quick brown fox jumps over the lazy dog, and nothing else happens on this line but for its end.\n"


class Framework(Protocol):
    """A framework, set up for one job."""

    def ask(self, question: str, context: str) -> str:
        """One run; returns its answer, raises what it raises."""

    def ask_all(self, question: str, contexts: list[str]) -> list[str]:
        """A run for each context, all at once, in this process; a failed one gives its error as text."""


def main(make: Callable[[Job], Framework]) -> None:
    """A driver's whole program."""
    job: Job = json.loads(sys.argv[1])
    loopback_only()
    out = os.dup(1)  # what frameworks do to sys.stdout is theirs
    began = time.perf_counter()
    try:
        framework = make(job)
        figures = {"import_s": time.perf_counter() - began, **PLAYS[job["play"]](framework, job)}
    except BaseException as error:
        traceback.print_exc(file=sys.__stderr__)
        figures = {"failed": _described(error)}
    os.write(out, b"\n" + json.dumps(figures).encode() + b"\n")
    os._exit(0)  # threads that cannot be stopped must not hold the figures back


def cell(framework: Framework, job: Job) -> Figures:
    """One run, whose cell says itself how long its calls took and how many replies were right."""
    framework.ask(WARM_UP, "x")
    with spending() as spent:
        answer = framework.ask(PLAY, "x")
    return {**spent.figures(), **json.loads(answer)}


def start(framework: Framework, job: Job) -> Figures:
    """Runs that answer at once: the first of the process, then later ones, one after the other."""
    with spending() as first:
        answers = [framework.ask(PLAY, "0")]
    took: list[float] = []
    with spending() as later:
        for number in range(1, job["size"]):
            began = time.perf_counter()
            answers.append(framework.ask(PLAY, str(number)))
            took.append(time.perf_counter() - began)
    count = len(took)
    right = sum(answer == str(number) for number, answer in enumerate(answers))
    later_ms = statistics.median(took) * 1000
    return {
        "first_ms": first.wall_s * 1000,
        "later_ms": later_ms,
        "later_cpu_ms": later.cpu_s / count * 1000,
        "right": right,
        "of": count + 1,
    }


def at_once(framework: Framework, job: Job) -> Figures:
    """Many runs at once in one process, each with a context of its own to give back."""
    framework.ask(WARM_UP, "x")
    contexts = [f"context {number}" for number in range(job["size"])]
    with spending() as spent:
        answers = framework.ask_all(PLAY, contexts)
    wrong = [answer for answer, context in zip(answers, contexts, strict=True) if answer != context]
    figures = {**spent.figures(), "right": len(contexts) - len(wrong), "of": len(contexts)}
    return {**figures, "wrong": wrong[0][:300]} if wrong else figures


def context(framework: Framework, job: Job) -> Figures:
    """One turn over a large text with a needle at its end."""
    framework.ask(WARM_UP, "x")
    text = LINE * (job["size"] // len(LINE)) + ENDING
    with spending() as spent:
        answer = framework.ask(PLAY, text)
    return {**spent.figures(), "right": int(answer == f"{len(text)} 1"), "of": 1}


def busy(framework: Framework, job: Job) -> Figures:
    """A cell that never ends by itself, and a turn after it."""
    framework.ask(WARM_UP, "x")
    wrong = {}
    with spending() as spent:
        try:
            went_on = framework.ask(PLAY, "x") == "went on"
        except Exception as error:
            went_on, wrong = False, {"wrong": "the run failed: " + _described(error)}
    return {**spent.figures(), "right": int(went_on), "of": 1, **wrong}


def in_threads(ask: Callable[[str], str], contexts: list[str]) -> list[str]:
    """``ask_all`` for a framework whose runs block: a thread each."""

    def one(context: str) -> str:
        try:
            return ask(context)
        except Exception as error:
            return "failed: " + _described(error)

    with ThreadPoolExecutor(len(contexts)) as pool:
        return list(pool.map(one, contexts))


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


PLAYS = {"cell": cell, "start": start, "at_once": at_once, "context": context, "busy": busy}
