"""Two numbered streams over packets that are lost, repeated, late, out of order or cut."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlm.broker.streams import (
    BODY_BYTES,
    MAX_PIECES,
    PACKET_BYTES,
    PIECE_BYTES,
    SUM_BYTES,
    Broken,
    Gap,
    Incoming,
    Outgoing,
    Packet,
    unpack,
)

EPOCH = "0123456789abcdef"
channels = st.integers(0, 5)
pieces = st.lists(st.tuples(channels, st.binary(min_size=1, max_size=20)), max_size=5)
packets = st.builds(Packet, st.text(), st.integers(0, 2**40), st.integers(0, 2**40), pieces, st.text())
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def signed(line: bytes, data: bytes = b"") -> bytes:
    """A body with the right sum, whatever it says."""
    return hashlib.blake2b(line + b"\n" + data, digest_size=SUM_BYTES).hexdigest().encode() + b" " + line + b"\n" + data


class Side:
    """One end, and what it has heard."""

    def __init__(self) -> None:
        self.outgoing, self.incoming = Outgoing(), Incoming()
        self.said: list[tuple[int, bytes]] = []
        self.heard: list[tuple[int, bytes]] = []

    def say(self, channel: int, data: bytes) -> None:
        self.said.append((channel, data))
        self.outgoing.put(channel, data)

    def speak(self, most: int = PACKET_BYTES) -> bytes:
        return Packet(EPOCH, self.incoming.after, *self.outgoing.next(most)).pack()

    def listen(self, body: bytes) -> None:
        try:
            packet = unpack(body)
        except Broken:
            return
        self.outgoing.taken(packet.after)
        try:
            self.heard += self.incoming.take(packet)
        except Gap:
            pass


@st.composite
def fates(draw):
    """What becomes of what two sides say to each other: steps of (what, which side, which packet, how)."""
    what = st.sampled_from(["say", "say", "speak", "speak", "arrive", "arrive", "arrive again", "lose", "arrive cut", "arrive changed"])
    return draw(st.lists(st.tuples(what, st.booleans(), st.integers(0, 10**6), st.binary(min_size=1, max_size=8)), max_size=80))


@given(fates())
def test_each_piece_arrives_once_and_in_order_whatever_becomes_of_packets(steps):
    sides = {True: Side(), False: Side()}
    on_the_way: dict[bool, list[bytes]] = {True: [], False: []}
    for what, who, number, data in steps:
        waiting = on_the_way[who]
        if what == "say":
            sides[who].say(number % 4, data)
        elif what == "speak":
            on_the_way[not who].append(sides[who].speak(number % 30))
        elif waiting:
            place = number % len(waiting)  # any of them: they overtake each other
            body = waiting[place] if what == "arrive again" else waiting.pop(place)
            if what == "arrive cut":
                body = body[: number % len(body)]
            elif what == "arrive changed":
                at = number % len(body)
                body = body[:at] + bytes([body[at] ^ (data[0] or 1)]) + body[at + 1 :]
            if what != "lose":
                sides[who].listen(body)
        for one, other in ((True, False), (False, True)):
            assert sides[one].heard == sides[other].said[: len(sides[one].heard)]
    for _ in range(3):  # the faults end: what is missing comes, and both learn that it did
        for who in (True, False):
            sides[not who].listen(sides[who].speak())
    assert sides[True].heard == sides[False].said
    assert sides[False].heard == sides[True].said
    assert sides[True].outgoing.size == sides[False].outgoing.size == 0


@given(packets)
def test_a_packet_is_read_as_it_was_written(packet):
    assert unpack(packet.pack()) == packet


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_a_packet_or_broken(body):
    with pytest.raises(Broken):
        unpack(body)


@given(anything, st.binary(max_size=20))
def test_any_json_with_the_right_sum_is_a_packet_or_broken(value, data):
    with pytest.raises(Broken):
        unpack(signed(json.dumps(value).encode(), data))


@given(st.fixed_dictionaries({"epoch": anything, "asked": anything, "after": anything, "first": anything, "pieces": anything}))
def test_a_packet_of_wrong_shapes_is_broken(facts):
    try:
        packet = unpack(signed(json.dumps(facts).encode()))
    except Broken:
        return
    assert isinstance(packet.epoch, str)
    assert isinstance(packet.asked, str)
    assert packet.after >= 0
    assert packet.first >= 0


RIGHT = {"epoch": EPOCH, "asked": "", "after": 0, "first": 1, "pieces": [[2, 3]]}


def test_the_shapes_that_the_next_tests_change_are_right_ones():
    assert unpack(signed(json.dumps(RIGHT).encode(), b"abc")).pieces == [(2, b"abc")]


@pytest.mark.parametrize(
    "change",
    [
        {"after": -1},
        {"after": 1.0},
        {"after": True},
        {"first": None},
        {"first": 10**30, "after": "1"},
        {"epoch": None},
        {"asked": 7},
        {"pieces": [[2, 4]]},
        {"pieces": [[2, 2]]},
        {"pieces": [[2, -1], [2, 4]]},
        {"pieces": [[-1, 3]]},
        {"pieces": [["2", 3]]},
        {"pieces": [[2, 3, 0]]},
        {"pieces": [[2, True], [2, 2]]},
        {"pieces": {"23": 3}},
        {"pieces": "23"},
        {"pieces": None},
        {"pieces": [[2, 0]] * MAX_PIECES + [[2, 3]]},
    ],
    ids=str,
)
def test_a_packet_with_one_wrong_fact_is_broken(change):
    with pytest.raises(Broken):
        unpack(signed(json.dumps({**RIGHT, **change}).encode(), b"abc"))


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b"{}", b"[]", b'"text"', b"7", b"\xff\xfe", b"", b"{", b'{"after": ' + b"9" * 5_000 + b"}", b"NaN"]
)
def test_a_line_that_is_no_object_of_a_packet_is_broken(line):
    with pytest.raises(Broken):
        unpack(signed(line))


def test_every_change_of_one_bit_and_every_cut_is_broken():
    body = Packet(EPOCH, 17, 4, [(0, b"\n\x00 frames"), (1, b'{"door": 1}'), (7, b"x")], "r1").pack()
    for at in range(len(body)):
        for bit in range(8):
            with pytest.raises(Broken):
                unpack(body[:at] + bytes([body[at] ^ 1 << bit]) + body[at + 1 :])
        with pytest.raises(Broken):
            unpack(body[:at])
    with pytest.raises(Broken):
        unpack(body + b"\n")


@given(packets, st.data())
def test_a_packet_of_which_a_byte_is_another_is_broken(packet, data):
    body = packet.pack()
    at = data.draw(st.integers(0, len(body) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda it: it != body[at]))
    with pytest.raises(Broken):
        unpack(body[:at] + bytes([byte]) + body[at + 1 :])


def test_a_gap_takes_nothing():
    incoming = Incoming()
    assert incoming.take(Packet(EPOCH, 0, 1, [(0, b"a"), (0, b"b")])) == [(0, b"a"), (0, b"b")]
    with pytest.raises(Gap):
        incoming.take(Packet(EPOCH, 0, 4, [(0, b"d")]))
    assert incoming.take(Packet(EPOCH, 0, 2, [(0, b"b"), (0, b"c")])) == [(0, b"c")]
    assert incoming.after == 3


@pytest.mark.parametrize("after", [0, 3, 10**30])
def test_what_was_never_sent_or_taken_long_ago_cannot_be_taken(after):
    outgoing = Outgoing()
    for data in (b"a", b"b"):
        outgoing.put(3, data)
    outgoing.taken(1)
    outgoing.taken(after)
    assert outgoing.next() == (2, [(3, b"b")])
    assert outgoing.size == outgoing.waiting(3) == 1


def test_a_packet_keeps_below_its_size_and_carries_one_piece_at_least():
    outgoing = Outgoing()
    outgoing.put(0, bytes(3 * PIECE_BYTES + 1))
    outgoing.put(1, b"x")
    assert [len(data) for _, data in outgoing.next()[1]] == [PIECE_BYTES] * 3 + [1, 1]
    assert [len(data) for _, data in outgoing.next(2 * PIECE_BYTES)[1]] == [PIECE_BYTES] * 2
    assert [len(data) for _, data in outgoing.next(1)[1]] == [PIECE_BYTES]
    assert outgoing.waiting(0) == 3 * PIECE_BYTES + 1


def test_the_largest_packets_fit_into_a_body():
    many, large = Outgoing(), Outgoing()
    for _ in range(MAX_PIECES + 1):
        many.put(2**31, b"x")
    large.put(0, bytes(2 * PACKET_BYTES))
    for outgoing in (many, large):
        body = Packet(EPOCH, 2**60, *outgoing.next(), "x" * 100).pack()
        assert len(body) <= BODY_BYTES
        assert unpack(body).pieces == outgoing.next()[1]
    assert len(many.next()[1]) == MAX_PIECES
