"""What a gateway may do wrong, for hypothesis to draw: lists of faults that read well when one of them breaks something."""

from hypothesis import strategies as st

from arlm.testing.gateway_faults import (
    AnswerInstead,
    CloseIdle,
    CutReply,
    CutRequest,
    DelayReply,
    DelayRequest,
    DropReply,
    DropRequest,
    Duplicate,
    Fault,
    OldReply,
    Replay,
)

STATUSES = (400, 401, 403, 404, 502, 503, 504)


def faults(*, longest_s: float = 0.05, statuses: tuple[int, ...] = STATUSES) -> st.SearchStrategy[Fault]:
    """One fault of any kind but Corrupt, which TCP keeps from happening; ``longest_s`` bounds delays. Shrinks to DropRequest()."""
    seconds = st.sampled_from([0.0, longest_s / 5, longest_s])
    shares = st.sampled_from([0.0, 0.5, 0.9])
    answers = st.builds(AnswerInstead, status=st.sampled_from(statuses), requests=st.integers(1, 4))
    return st.one_of(
        st.just(DropRequest()),
        st.builds(DropReply, status=st.sampled_from([None, 502])),
        st.builds(DelayRequest, seconds=seconds),
        st.builds(DelayReply, seconds=seconds),
        st.builds(Duplicate, later=seconds, reply=st.sampled_from(["first", "second"])),
        st.builds(Replay, newer=st.integers(1, 5)),
        st.builds(CutRequest, keep=shares, reframed=st.booleans()),
        st.builds(CutReply, keep=shares, reframed=st.booleans()),
        answers,
        st.just(AnswerInstead(status=200, html=True)),
        st.builds(OldReply, back=st.integers(1, 3)),
        st.just(CloseIdle()),
    )


def schedules(*, most: int = 30, longest_s: float = 0.05, statuses: tuple[int, ...] = STATUSES) -> st.SearchStrategy[list[Fault | None]]:
    """A plan of at most ``most`` requests, each passed or met by one fault; later requests pass. Shrinks to few faults, then none."""
    return st.lists(st.none() | faults(longest_s=longest_s, statuses=statuses), max_size=most)
