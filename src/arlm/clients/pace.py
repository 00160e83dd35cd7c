"""How many requests a second a model lets through, learned from what it refuses. Arithmetic alone: every method is told the time.

Additive-increase, multiplicative-decrease in the shape of TCP's CUBIC (RFC 9438): a refusal puts the rate a tenth below what was getting
through; from there it returns slowly to that *ceiling*, stays near it, and the longer nothing is refused the faster it goes beyond. What
is sent before a cut can say nothing about the rate after it, so a burst of refusals is one cut, however long its answers take.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CUT = 0.9  # of what got through: the sawtooth's mean is 95 % of the ceiling, and one cut frees room for those refused to come back
PERIOD_S = 2.5  # from a cut back to the ceiling: long against a round trip
PERIOD_CALLS = 20  # or so many calls, at low rates: at most one in twenty is refused for the sake of finding the ceiling
PERIOD_HOLDS = 10.0  # or so many times what a refusal costs in Retry-After: at most a tenth of the time is spent holding
BEYOND = 0.1  # how fast the rate grows past the ceiling: by a tenth in the second period after it, tenfold in the fourth
DOUBLING_CALLS = 4  # where no ceiling is known the rate doubles every second, or every so many calls
FIRST_RATE = 10.0  # a second, after a refusal of one of the first few calls, which says only that there is a limit
LEAST_RATE = 0.05  # a second: three calls a minute, the smallest limit that providers sell
MOST_RATE = 10_000.0  # a second: more than one loop can send
WINDOW_S = 1.0  # what got through is counted over the last one to two windows
SHORTEST_S = 0.001  # a window is taken to be that long at least
BURST_S = 1.0  # a burst counts as what a second lets through: how much faster it was sent says nothing about the limit
SAMPLE = 20  # requests from which a share of refusals can be told
FEW = 4  # requests let through: with fewer, or before any rate was kept to, what got through is no ceiling to come back to
AT_THE_END = 4.0  # times the share of refusals is what it is at the end of the time over which it was counted
QUIET_S = 60.0  # nothing refused and nobody in line: there is no limit any more
ALLOWED = 0.03  # the share of refusals that is no reason to cut: now and then one comes by chance, from any provider
RETURNED = 0.95  # of the rate that was refused: refused again below it, the cut has not helped
HELPED = 0.6  # of the share before a cut: if less is refused after it, it has helped
USELESS = 2  # cuts in a row that did not lower the share of refusals: it does not depend on our rate
TOLERATED_S = 30.0  # before that is put to the test again
FASTER = 1.5  # times as much sent once the useless cuts are undone: more has to get through then
DOUBTED_S = 60.0  # or else refusals are taken to depend on the rate for so long


@dataclass(slots=True)
class _Window:
    """Requests sent in a stretch of time, and how many of them were refused."""

    began: float
    sent: int = 0
    waited: int = 0  # of those sent, for their turn
    refused: int = 0

    @property
    def share(self) -> float:
        return min(1.0, self.refused / self.sent) if self.sent else 0.0

    def refuse(self, sent_at: float) -> None:
        """One was refused. It may have been sent so long ago that it is not among those counted."""
        self.sent += sent_at < self.began
        self.refused += 1

    def with_earlier(self, earlier: _Window | None) -> _Window:
        if earlier is None:
            return self
        return _Window(earlier.began, earlier.sent + self.sent, earlier.waited + self.waited, earlier.refused + self.refused)


class Pace:
    """The rate of one model.

    Attributes:
        rate: requests a second; None: as many as there are.
    """

    def __init__(self) -> None:
        self.rate: float | None = None
        self._window: _Window | None = None
        self._earlier: _Window | None = None
        self._forget()

    def _forget(self) -> None:
        self._ceiling = math.inf
        self._is_ceiling_known = False
        self._grown = 0.0  # probing periods since the cut; where no ceiling is known, doublings
        self._period = PERIOD_S
        self._least = LEAST_RATE
        self._cut_at = -math.inf
        self._cut: _Window | None = None  # what led to the last cut
        self._cut_after = 0.0  # seconds it was counted over
        self._cut_from: float | None = None  # the rate before it
        self._is_learning = False  # whether late refusals of what was sent before it lower the ceiling
        self._pressed_at = -math.inf  # the last refusal, or the last time that somebody waited
        self._useless = 0
        self._shares: list[float] = []  # of refusals before each cut of a row that may be useless
        self._before_useless = MOST_RATE
        self._tolerated = 0.0
        self._tolerated_until = -math.inf
        self._trial: tuple[_Window, float] | None = None  # requests at the lower rate and over how long, while the higher one is tried
        self._doubted_until = -math.inf

    def waited(self, now: float) -> float:
        """A request had to wait for its turn. Returns the part of a probing period, or of a doubling, that it stands for."""
        if self.rate is None:
            return 0.0
        self.press(now)
        if not self._is_ceiling_known:
            return 1 / max(self.rate, DOUBLING_CALLS)
        return 1 / max(self.rate * self._period, PERIOD_CALLS)

    def is_by_chance(self, now: float) -> bool:
        """Whether refusals have been found not to depend on the rate: then what one call is told says nothing about the others."""
        return now < self._tolerated_until

    def press(self, now: float) -> None:
        """There is a reason at this time, which may lie ahead, to keep to the rate."""
        self._pressed_at = max(self._pressed_at, now)

    def sent(self, now: float, step: float) -> None:
        """A request is being sent; ``step`` is what ``waited`` said of it, or 0."""
        window = self._window
        if window is None:
            window = self._window = _Window(now)
        elif now - window.began >= WINDOW_S and (self.rate is None or window.sent >= SAMPLE):
            self._earlier = window if self.rate is not None or now - window.began < 2 * WINDOW_S else None
            window = self._window = _Window(now)
        window.sent += 1
        window.waited += step > 0

    def let_through(self, now: float, sent_at: float, step: float) -> None:
        """A request was answered.

        Args:
            step: what ``waited`` said of it; 0 for one that had not waited, which says nothing about the rate.
        """
        self.calm_down(now)
        if self.rate is not None and step and sent_at >= self._cut_at:
            self._grown += step
            self._set_rate()

    def calm_down(self, now: float) -> None:
        """Forget the limit if nothing has been refused, and nobody has had to wait, for long."""
        if self.rate is not None and now - self._pressed_at >= QUIET_S:
            self.rate = None
            self._forget()

    def refused(self, now: float, sent_at: float, hold: float) -> None:
        """A request was refused.

        Args:
            hold: seconds the model asked to wait, or 0.
        """
        self.press(now + hold)
        self._period = max(PERIOD_S, PERIOD_HOLDS * hold)
        self._least = max(LEAST_RATE, 0.5 / hold) if hold else LEAST_RATE  # who asks to wait a second lets more through than one a minute
        if sent_at < self._cut_at:
            if self._is_learning and self._cut is not None:
                self._cut.refuse(sent_at)
                self._learn()
            return
        assert self._window is not None
        window = self._earlier if self._earlier is not None and sent_at < self._window.began else self._window
        window.refuse(sent_at)
        seen = self._window.with_earlier(self._earlier)
        if self.rate is None or seen.sent >= SAMPLE:
            self._judge(now, seen, hold)

    def _judge(self, now: float, seen: _Window, hold: float) -> None:
        """Cut, unless cutting is known not to help."""
        if self.rate is not None:
            assert self._cut is not None
            self._check_trial(now, seen)
            if seen.share <= self._by_chance(now, seen.sent, hold):
                return
            self._assess(seen)
            if self._may_tolerate(now, seen):
                self._tolerate(now, seen)
                return
        if not self._shares:
            self._before_useless = self.rate or seen.sent / max(now - seen.began, BURST_S)
        self._cut_after = max(now - seen.began, SHORTEST_S if self.rate else BURST_S)
        self._cut, self._cut_from, self._cut_at, self._is_learning = seen, self.rate, now, True
        self._window, self._earlier = _Window(now + hold), None
        self._grown = 0.0
        self._learn()

    def _assess(self, seen: _Window) -> None:
        """Count the last cut as useless if calls are refused again below the rate of then, and to about the same part as before."""
        assert self.rate is not None
        assert self._cut is not None
        self._shares.append(self._cut.share)
        before = sum(self._shares) / len(self._shares)
        if self.rate >= RETURNED * (self._cut_from or math.inf) or seen.share <= HELPED * before:
            self._useless = 0
            self._shares.clear()
        elif ALLOWED < seen.share < before / HELPED + 1 / SAMPLE:
            self._useless += 1

    def _by_chance(self, now: float, sent: int, hold: float) -> float:
        """The share of refusals that is no reason to cut."""
        if now >= self._tolerated_until:
            return 0.0 if hold else ALLOWED
        return self._tolerated + 2 * math.sqrt(self._tolerated * (1 - self._tolerated) / sent)

    def _may_tolerate(self, now: float, seen: _Window) -> bool:
        """Cuts have been useless often enough, and some calls get through."""
        enough = self._useless >= (1 if now < self._tolerated_until else USELESS)
        return enough and seen.share < 1 - 1 / SAMPLE and now >= self._doubted_until

    def _tolerate(self, now: float, seen: _Window) -> None:
        """Others, or chance, decide about refusals: go back to the rate before the useless cuts and grow in spite of them."""
        self._trial = seen, now - seen.began
        self._tolerated = max(seen.share, self._tolerated if now < self._tolerated_until else 0.0)
        self._tolerated_until = now + TOLERATED_S
        self._useless = 0
        self._shares.clear()
        self._ceiling, self._is_ceiling_known, self._grown = self._before_useless, True, 1.0
        self._cut, self._cut_at, self._is_learning = seen, now, False
        self._window, self._earlier = _Window(now), None
        self._set_rate()

    def _check_trial(self, now: float, seen: _Window) -> None:
        """At the higher rate more must get through than at the lower one, or the model does limit the rate."""
        if self._trial is None:
            return
        (lower, over), self._trial = self._trial, None
        faster = seen.sent / max(now - seen.began, SHORTEST_S) / (lower.sent / max(over, SHORTEST_S))
        if faster >= FASTER and faster * (1 - seen.share) < math.sqrt(faster) * (1 - lower.share):
            self._tolerated_until, self._doubted_until = -math.inf, now + DOUBTED_S
            self._useless = 0
            self._shares.clear()

    def _learn(self) -> None:
        """Set the ceiling to what got through before the cut. Called again as further refusals of that time come in."""
        cut = self._cut
        assert cut is not None
        let_through = max(0.5, cut.sent - cut.refused)
        ceiling = let_through / self._cut_after
        if self._cut_from is not None:
            # The count is over a time in which the rate was growing: the few refusals at its end came at the rate of the end.
            ceiling = min(max(ceiling, self._cut_from * (1 - AT_THE_END * cut.share)), self._cut_from)
            if 2 * cut.waited < cut.sent:  # so few were sent that it was not the rate which kept more from getting through
                ceiling = max(ceiling, self._cut_from / 2)
        elif cut.sent < FEW:
            ceiling = max(ceiling, FIRST_RATE)
        self._ceiling = ceiling
        self._is_ceiling_known = self._cut_from is not None and let_through >= FEW
        self._set_rate()

    def _set_rate(self) -> None:
        if self._is_ceiling_known:
            beyond = max(0.0, self._grown - 1)
            growth = (1 - self._grown) * math.log(CUT) + BEYOND * min(beyond, 5.0) ** 3
        else:
            growth = math.log(CUT) + min(self._grown, 30.0) * math.log(2)
        self.rate = min(MOST_RATE, max(self._least, self._ceiling * math.exp(growth)))
