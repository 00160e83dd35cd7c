"""REPL functions as code in a cell sees them: plain functions, made from what the host says in its hello."""

from __future__ import annotations

import asyncio
import builtins
import inspect
from typing import Any, Callable, Dict, Generator, List, Optional, Tuple, cast

from . import wire
from .link import Call, CallFailed, Calls
from .values import is_json

BATCH_CHARS = wire.FRAGMENT_CHARS  # a batch is sent in requests of about this size
WINDOW_CHARS = 64 * wire.FRAGMENT_CHARS  # unanswered batch text of one call; the host refuses far more, so wait before that


class Reply(str):
    """What a model answered: a str. Awaiting it gives it back, so that ``await llm_query(x)`` is no error."""

    __slots__ = ()
    failed = False

    def __await__(self) -> Generator[Any, None, Reply]:
        """Give the reply itself."""
        yield from ()
        return self


class FailedReply(Reply):
    """Stands in the place of a sub-call that failed: the text starts with ``Error: ``, and ``failed`` is True."""

    __slots__ = ()
    failed = True


class Replies(List[Reply]):
    """A list of replies; awaiting it gives it back."""

    def __await__(self) -> Generator[Any, None, Replies]:
        """Give the list itself."""
        yield from ()
        return self


def build(specs: List[Dict[str, Any]], link: Calls) -> Dict[str, Callable[..., Any]]:
    """Functions by name for the specs of the host's hello.

    A spec: ``name``, ``doc``, ``params`` (``[name]`` or ``[name, default]`` each; None for a tool, which takes anything), ``returns``
    ("reply", "replies" or "json"), ``split`` (the list parameter by which a batch is sent in pieces, or None), ``context`` (the parameter
    that takes a value for a child, or with ``split`` a list of as many; or None), ``awaitable`` (an async function), ``method``.
    """
    return {spec["name"]: _stub(spec, link) for spec in specs}


def _stub(spec: Dict[str, Any], link: Calls) -> Callable[..., Any]:
    stub: Any = _tool(spec, link) if spec["params"] is None else _function(spec, link)
    stub.__name__ = stub.__qualname__ = spec["name"]
    stub.__doc__ = spec["doc"]
    stub.__module__ = "arlm"
    return cast(Callable[..., Any], stub)


def _tool(spec: Dict[str, Any], link: Calls) -> Any:
    """A function of the user's: whatever arguments, bound on the host; JSON both ways."""
    name, method = spec["name"], spec["method"]

    def tool(*args: Any, **kwargs: Any) -> Any:
        for where, value in [*((f"argument {number}", value) for number, value in enumerate(args, 1)), *kwargs.items()]:
            if not is_json(value):
                raise TypeError(
                    f"{name}(): {where} is no JSON value ({type(value).__name__}); pass text, numbers, lists and dicts with str keys"
                )
        return _ask(link, method, {"args": list(args), "kwargs": kwargs})

    return tool


def _function(spec: Dict[str, Any], link: Calls) -> Any:
    signature = inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default[0] if default else inspect.Signature.empty)
            for name, *default in spec["params"]
        ]
    )
    name, method, returns, split, context = spec["name"], spec["method"], spec["returns"], spec["split"], spec.get("context")

    def bind(args: Any, kwargs: Any) -> Dict[str, Any]:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}(): {error}") from None
        bound.apply_defaults()
        if context is not None and split is None:
            bound.arguments[context] = _context(link, f"{name}(): {context}", bound.arguments[context])
        return bound.arguments

    def plain(*args: Any, **kwargs: Any) -> Any:
        arguments = bind(args, kwargs)
        if split is not None:
            return Replies(_batch(link, method, arguments, split, context))
        return _value(_ask(link, method, arguments), returns)

    async def awaitable(*args: Any, **kwargs: Any) -> Any:
        return _value(await _ask_async(link, method, bind(args, kwargs)), returns)

    stub: Any = awaitable if spec["awaitable"] else plain
    stub.__signature__ = signature
    return stub


def _value(answer: Any, returns: str) -> Any:
    if returns == "json":
        return answer
    return FailedReply(answer["failed"]) if "failed" in answer else Reply(answer["text"])


def _request(link: Calls, method: str, arguments: Dict[str, Any]) -> Call:
    try:
        return link.request(method, arguments)
    except wire.TooLarge:
        raise
    except (TypeError, ValueError) as error:
        raise TypeError(f"{method}(): an argument cannot be sent ({error}); pass text, numbers, lists and dicts") from None


def _ask(link: Calls, method: str, arguments: Dict[str, Any]) -> Any:
    call = _request(link, method, arguments)
    try:
        return call.wait()
    except CallFailed as error:
        raise exception(error) from None
    except BaseException:
        link.cancel(call)
        raise


async def _ask_async(link: Calls, method: str, arguments: Dict[str, Any]) -> Any:
    loop = asyncio.get_running_loop()
    answered = loop.create_future()

    def wake(_call: Call) -> None:
        try:
            loop.call_soon_threadsafe(lambda: None if answered.done() else answered.set_result(None))
        except RuntimeError:
            pass  # that loop is closed: nobody waits any more

    call = _request(link, method, arguments)
    call.then(wake)
    try:
        await answered
        return call.result()
    except CallFailed as error:
        raise exception(error) from None
    except BaseException:
        link.cancel(call)
        raise


def _context(link: Calls, where: str, value: Any) -> Optional[Dict[str, Any]]:
    """A value for a child as it is sent: one that the host put here by its name, any other as it is."""
    if value is None:
        return None
    for known, loaded in link.loaded.items():
        if loaded is value:
            return {"same": known}
    if not is_json(value):
        raise TypeError(f"{where} is no JSON value ({type(value).__name__}); pass text, numbers, lists and dicts with str keys")
    return {"value": value}


def _batch(link: Calls, method: str, arguments: Dict[str, Any], split: str, context: Optional[str]) -> List[Reply]:
    items = _items(method, arguments, split)
    for position, item in enumerate(items):
        if not isinstance(item, str):
            raise TypeError(f"{method}(): {split}[{position}] must be a str, not {type(item).__name__}")
    beside = _beside(link, method, arguments, context, len(items)) if context is not None else None
    under_way: List[Call] = []
    replies: List[Reply] = []
    sizes: List[int] = []
    try:
        for begin, end, size in _pieces(items, beside):
            while under_way and sum(sizes) + size > WINDOW_CHARS:
                replies += _collect(under_way[0])
                del under_way[0], sizes[0]
            piece = {**arguments, split: items[begin:end]}
            if context is not None and beside is not None:
                piece[context] = beside[begin:end]
            under_way.append(_request(link, method, piece))
            sizes.append(size)
        while under_way:
            replies += _collect(under_way[0])
            del under_way[0], sizes[0]
    except CallFailed as error:
        raise exception(error) from None
    finally:
        for call in under_way:
            link.cancel(call)
    return replies


def _items(method: str, arguments: Dict[str, Any], name: str) -> List[Any]:
    given = arguments[name]
    if isinstance(given, (str, bytes)) or not hasattr(given, "__iter__"):
        raise TypeError(f"{method}(): {name} must be a list, not {type(given).__name__}")
    return list(given)


def _beside(link: Calls, method: str, arguments: Dict[str, Any], context: str, count: int) -> Optional[List[Any]]:
    """A batch's contexts: one for each of its ``count`` prompts, or None."""
    if arguments[context] is None:
        return None
    contexts = _items(method, arguments, context)
    if len(contexts) != count:
        raise ValueError(f"{method}(): {count:,} prompts and {len(contexts):,} {context}; give one for each prompt")
    return [_context(link, f"{method}(): {context}[{position}]", value) for position, value in enumerate(contexts)]


def _collect(call: Call) -> List[Reply]:
    return [_value(answer, "reply") for answer in call.wait()]


def _pieces(items: List[str], beside: Optional[List[Any]]) -> Generator[Tuple[int, int, int], None, None]:
    """Where to cut a batch: begin, end and size of each piece."""
    begin = size = 0
    for position, item in enumerate(items):
        chars = len(item) + 16 + (_chars(beside[position]) if beside is not None else 0)
        if position > begin and size + chars > BATCH_CHARS:
            yield begin, position, size
            begin, size = position, 0
        size += chars
    if items:
        yield begin, len(items), size


def _chars(context: Optional[Dict[str, Any]]) -> int:
    value = None if context is None else context.get("value")
    return 0 if value is None else len(value) if isinstance(value, str) else len(wire.dumps(value))


def exception(error: CallFailed) -> Exception:
    """The exception to raise in the cell: a built-in one by its name, else a RuntimeError that carries the name."""
    known = getattr(builtins, error.kind, None)
    if isinstance(known, type) and issubclass(known, Exception):
        try:
            return known(str(error))
        except TypeError:
            pass  # one that is not made from a text: UnicodeDecodeError, ExceptionGroup
    made: Optional[type] = type(error.kind, (RuntimeError,), {"__module__": "builtins"}) if error.kind.isidentifier() else None
    return made(str(error)) if made else RuntimeError(str(error))
