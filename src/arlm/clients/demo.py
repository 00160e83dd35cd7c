"""The built-in ``demo`` model: a small rule-based stand-in for a language model, so that arlm can be tried without a key or a network.

It is not a language model. As a root it knows how to work on one kind of input, the support tickets that ``arlm demo`` generates, and says
so about any other. As a sub-model it reads tickets by a few rules about words and answers in JSON. Code, processes, calls, limits and
events around it are the real ones; its token counts are a quarter of the characters, and it costs nothing.
"""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import Mapping, Sequence

from ..errors import ConfigError
from ..types import JSON, Completion, Message, TokenUsage
from .base import BaseLM, Prompt, as_messages

ROOT_S = 0.4  # seconds that a reply of the root takes; a real one takes several
SUB_S = (0.2, 0.6)  # and the range for sub-calls
SUBCALLS = 400  # the root packs the tickets into about that many prompts
CHARS_PER_TOKEN = 4
HEADING = r"^=== Ticket (\d+) \| product: (\w+)"
TOPIC = "money back"

ASKING = (
    "Which of these customers ask for their money back, in whatever words? A customer who declines it, has it already, or only speaks of \
it does not count. Reply with a JSON list of their ticket numbers and nothing else."
)

LOOK = """\
First I look at the input: its type, its size, its beginning and its end.

```repl
print(type(context).__name__, f"{len(context):,} characters")
print(context[:900])
print("[…]")
print(context[-500:])
```"""

SPLIT = """\
It is a list of tickets. I split it by code, and see whether counting a word would do.

```repl
import collections, re
heads = list(re.finditer(r"^=== Ticket (\\d+) \\| product: (\\w+).*$", context, re.M))
ends = [head.start() for head in heads[1:]] + [len(context)]
tickets = {head[1]: context[head.start():end].strip() for head, end in zip(heads, ends)}
product = {head[1]: head[2] for head in heads}
print("tickets:", len(tickets), "longest:", max(map(len, tickets.values())))
print("products:", dict(collections.Counter(product.values())))
named = [number for number, text in tickets.items() if "refund" in text.lower()]
print("tickets with the word 'refund':", len(named))
for number in named[:3]:
    sentence = next(line for line in re.split(r"(?<=[.!?])\\s+", tickets[number]) if "refund" in line.lower())
    print("  for example:", sentence)
```"""

ASK = """\
The word alone decides nothing: some decline it, and others ask without it. Each ticket has to be read, so I pack %(pack)d into a prompt \
and ask for all of them at once.

```repl
ASKING = %(asking)r
numbers = list(tickets)
packs = [numbers[at:at + %(pack)d] for at in range(0, len(numbers), %(pack)d)]
prompts = [ASKING + "\\n\\n" + "\\n\\n".join(tickets[number] for number in pack) for pack in packs]
replies = llm_query_batched(prompts)
print("sub-calls:", len(replies), "failed:", sum(reply.failed for reply in replies))
print("characters a prompt, at most:", max(map(len, prompts)))
print("first reply:", replies[0][:200])
```"""

CHECK = """\
Now I read the replies, ask again where one is of no use, and check a sample of tickets one by one.

```repl
import json, random

def read(reply, pack):
    try:
        found = [str(number).zfill(6) for number in json.loads(reply)]
    except ValueError:
        return None
    return found if not reply.failed and set(found) <= set(pack) else None

found = {at: read(reply, pack) for at, (reply, pack) in enumerate(zip(replies, packs))}
useless = [at for at, numbers_found in found.items() if numbers_found is None]
again = llm_query_batched([prompts[at] for at in useless]) if useless else []
found.update({at: read(reply, packs[at]) or [] for at, reply in zip(useless, again)})
asks = {number for numbers_found in found.values() for number in numbers_found}
sample = random.Random(1).sample(numbers, 40)
alone = llm_query_batched([ASKING + "\\n\\n" + tickets[number] for number in sample])
differ = [number for number, reply in zip(sample, alone) if (read(reply, [number]) == [number]) != (number in asks)]
counts = collections.Counter(product[number] for number in asks)
report = "\\n".join(f"{name}: {counts[name]}" for name in sorted(set(product.values()))) + f"\\ntotal: {len(asks)}"
print("asked again:", len(useless), "sample of", len(sample), "read alone, differing:", len(differ))
print(report)
```"""

FINISH = """\
The sample agrees with the batch, so this is the answer.

```repl
answer["content"] = report
answer["ready"] = True
```"""

DOUBT = """\
The sample does not agree with the batch, and I say so.

```repl
answer["content"] = report + "\\n(not certain: a sample that was read one by one differs)"
answer["ready"] = True
```"""

EXCUSE = """\
I cannot work on this.

```repl
answer["content"] = (
    "This is arlm's demo model: a small rule-based stand-in, not a language model. It can work on the input of `arlm demo` and "
    f"on no other. Your input is a {type(context).__name__} of length {len(context):,}. "
    "For an answer, name a language model: --model provider/name"
)
answer["ready"] = True
```"""


class DemoLM(BaseLM):
    """The rule-based stand-in; see the module. Calls take a simulated time and may be made by the hundred at once.

    Attributes:
        in_flight: calls being answered now.
        max_in_flight: the most at once.
    """

    provider = "demo"

    def __init__(self, model: str = "demo") -> None:
        super().__init__(model)
        self.in_flight = self.max_in_flight = 0

    async def acompletion(self, prompt: Prompt, *, model: str | None = None, sampling: Mapping[str, JSON] | None = None) -> Completion:
        """Answer by rules. ``model`` and ``sampling`` change nothing. Cancelling it ends the wait."""
        messages = as_messages(prompt)
        is_root = messages[0]["role"] == "system"
        last = messages[-1]["content"]
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            text = root_reply(messages) if is_root else read_tickets(last)
            await asyncio.sleep(ROOT_S if is_root else _latency(last))
        finally:
            self.in_flight -= 1
        sent = sum(len(message["content"]) for message in messages)
        usage = TokenUsage(input_tokens=sent // CHARS_PER_TOKEN, output_tokens=len(text) // CHARS_PER_TOKEN, cost_usd=0.0)
        return Completion(text=text, usage=usage, finish_reason="stop")


def provider(provider_name: str, model: str) -> DemoLM:
    """What the entry point calls. Raises ConfigError for a model that is not ``demo``."""
    if model != "demo":
        raise ConfigError(f"the provider {provider_name!r} has one model: write '{provider_name}/demo'")
    return DemoLM(model)


def root_reply(messages: Sequence[Message]) -> str:
    """The next step of the plan, given what the REPL printed."""
    printed = messages[-1]["content"]
    turns = sum(message["role"] == "assistant" for message in messages)
    if TOPIC not in messages[1]["content"]:
        return EXCUSE
    match turns:
        case 0:
            return LOOK
        case 1 if re.search(HEADING, printed, re.MULTILINE):
            return SPLIT
        case 2 if found := re.search(r"^tickets: (\d+)", printed, re.MULTILINE):
            return ASK % {"pack": max(1, -(-int(found[1]) // SUBCALLS)), "asking": ASKING}
        case 3 if "sub-calls:" in printed:
            return CHECK
        case 4 if "differing: 0" in printed:
            return FINISH
        case 4 if "differing:" in printed:
            return DOUBT
    return EXCUSE


# Rules for one sentence: it speaks of money that comes back, it is a wish or a demand, and nothing takes that away again.
MONEY_BACK = re.compile(
    r"\b(refund\w*|reimburs\w+|money back|(?:get|have|want)\b[^.]*\bback\b[^.]*\b(?:paid|spent)|"
    r"(?:return|reverse|cancel|credit|pay back|repay|send back|give back|transfer)\w*\b[^.]*\b"
    r"(?:money|charge|payment|amount|sum|price|card|account|paid|spent)|"
    r"(?:money|charge|payment|amount|sum|price|paid|spent)\b[^.]*\b(?:return|revers|credit|transfer|back)\w*)\b",
    re.IGNORECASE,
)
WISH = re.compile(
    r"\b(please|kindly|want|would like|i'd like|i'd rather|expect|need|insist|demand|ask(?:ing)? (?:you|for|that)|request|"
    r"can you|could you|how do i|when will you|owe)\b",
    re.IGNORECASE,
)
WAIVED = re.compile(
    r"\b(not|no|never|without|neither|already|thanks|thank|arrived|received|instead of|rather than|my (?:sister|neighbour|colleague)|"
    r"in case|in general|policy)\b|n't\b",
    re.IGNORECASE,
)


def read_tickets(prompt: str) -> str:
    """The numbers of the tickets in ``prompt`` whose writers ask for their money back, as JSON."""
    heads = list(re.finditer(HEADING, prompt, re.MULTILINE))
    if TOPIC not in prompt or not heads:
        return "I am arlm's demo model, a rule-based stand-in: I can only say who asks for money back in the tickets of `arlm demo`."
    ends = [head.start() for head in heads[1:]] + [len(prompt)]
    return json.dumps([head[1] for head, end in zip(heads, ends, strict=True) if asks_for_money_back(prompt[head.end() : end])])


def asks_for_money_back(ticket: str) -> bool:
    """Whether a sentence of the ticket asks for money back, and none of that sentence's words waives it."""
    for found in MONEY_BACK.finditer(ticket):
        begin = max(ticket.rfind(mark, 0, found.start()) for mark in ".!?\n") + 1
        ends = [at for mark in ".!?\n" if (at := ticket.find(mark, found.end())) >= 0]
        sentence = ticket[begin : min(ends, default=len(ticket)) + 1]
        if WISH.search(sentence) and not WAIVED.search(sentence):
            return True
    return False


def _latency(prompt: str) -> float:
    """The same prompt takes the same time."""
    shortest, longest = SUB_S
    return shortest + (longest - shortest) * (zlib.crc32(prompt.encode("utf-8", "surrogatepass")) % 1_000) / 1_000
