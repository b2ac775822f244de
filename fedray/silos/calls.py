"""What a run may ask of a silo: the methods of a client's actor, with the types of what they take and give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedray.aggregation.each import Rows
from fedray.clients.messages import (
    ClientReport,
    ClientTask,
    HostInfo,
    Inquiry,
    LocalEvaluation,
    NoisedEvaluation,
    PartialSum,
    RoundTask,
)
from fedray.clients.terms import Terms
from fedray.models.facts import ModelFacts
from fedray.parameters import Vector
from fedray.privacy.account import Decision
from fedray.privacy.figures import Figures
from fedray.silos.codec import Buffer, Codec, Malformed, parse, written
from fedray.spans import Span

#: Longest head of a message; what is longer travels as an array of bytes.
_LONGEST = 2**19


@dataclass(frozen=True)
class SiloOpening:
    """What a silo is told of a run beside its terms.

    Attributes:
        client: the silo, with its index among the run's clients.
        pinned: hash of an entry that its ledger must hold, as a checkpoint knows it.
        every: it can take part in the first of every so many rounds only.
        clients, rate, alike: of all clients: their number, the largest rate, and whether they take part alike. The silo works out the plan by
            which its own ledger is charged from these and the terms.
        profile: whether it keeps spans.
        signs: whether it signs a receipt for each update.
        signed: hash of a receipt of this run that its own file of receipts must hold, because the driver has it.
    """

    client: ClientTask
    pinned: str | None
    every: int
    clients: int
    rate: float
    alike: bool
    profile: bool
    signs: bool
    signed: str | None


@dataclass(frozen=True)
class Call:
    """A method.

    Attributes:
        takes: types of its arguments.
        gives: type of its answer.
        rest: type of further arguments, of which there may be any number; None: there are none.
        control: it is answered while other methods work.
    """

    takes: tuple[Any, ...]
    gives: Any
    rest: Any = None
    control: bool = False


_Clients = list[ClientTask]
_Reports = list[ClientReport]

#: The methods by name. ``open`` makes the silo's host and is its ``ready``; ``close`` ends it.
CALLS: dict[str, Call] = {
    "open": Call((Terms, SiloOpening), HostInfo),
    "configure": Call((ModelFacts, str), str),
    "preflight": Call((), float),
    "ping": Call((), None, control=True),
    "stop_round": Call((int,), None, control=True),
    "at_work": Call((), list[int], control=True),
    "close": Call((), None, control=True),
    "spans": Call((), list[Span]),
    "consult": Call((RoundTask, str, dict[int, Inquiry]), dict[int, bytes | str]),
    "train": Call((RoundTask, Vector, _Clients, None), _Reports, rest=Vector),
    "train_and_hand_over": Call((RoundTask, Vector, _Clients), tuple[_Reports, PartialSum], rest=Vector),
    "train_each": Call((RoundTask, Vector, _Clients), tuple[_Reports, list[Rows]]),
    "collect": Call((RoundTask,), PartialSum),
    "hand_over": Call((RoundTask,), tuple[None, PartialSum]),
    "evaluate": Call((Vector, _Clients), list[LocalEvaluation]),
    "evaluate_noised": Call((Vector, _Clients, int), list[NoisedEvaluation]),
    "authorize": Call((int, int), Decision),
    "commit": Call((int, int, dict[str, Any] | None), None),
    "spent": Call((int | None,), tuple[Figures, str]),
    "signed_after": Call((int,), list[bytes]),
    "of_ledger": Call((Literal["part", "lacking"],), Any, rest=str),
}


def pack_call(codec: Codec, name: str, session: str, arguments: Sequence[Any]) -> tuple[bytes, list[Buffer]]:
    """A call as a head and buffers.

    Raises:
        Malformed: the arguments are not the method's.
    """
    body, buffers = codec.pack(_taken(name, len(arguments)), tuple(arguments))
    return _packed({"call": name, "session": session}, body, buffers)


def read_call(head: bytes, buffers: Sequence[Buffer]) -> tuple[str, str, Any, Sequence[Buffer]]:
    """The method's name, the session, and what :func:`unpack_arguments` takes.

    Raises:
        Malformed: it is no call.
    """
    about, body, rest = _read(head, buffers, {"call", "session"})
    name, session = about["call"], about["session"]
    if not isinstance(name, str) or name not in CALLS or not isinstance(session, str):
        raise Malformed(f"a message asks for {name!r}, which no silo does.")
    return name, session, body, rest


def unpack_arguments(codec: Codec, name: str, body: Any, buffers: Sequence[Buffer]) -> tuple[Any, ...]:
    """The arguments of a call.

    Raises:
        Malformed: they are not the method's.
    """
    number = len(body) if isinstance(body, list) else 0
    found: tuple[Any, ...] = codec.unpack(_taken(name, number), body, buffers)
    return found


def pack_answer(codec: Codec, name: str, value: Any) -> tuple[bytes, list[Buffer]]:
    """An answer as a head and buffers."""
    body, buffers = codec.pack(CALLS[name].gives, value)
    return _packed({"said": "answer"}, body, buffers)


def pack_words(said: Literal["error", "gone"], kind: str, text: str) -> tuple[bytes, list[Buffer]]:
    """An error, or that there is no host for the session, as a head: the error's class and its sentence."""
    return _packed({"said": said}, [kind, text], [])


def read_answer(codec: Codec, name: str, head: bytes, buffers: Sequence[Buffer]) -> tuple[str, Any]:
    """What was said (``answer``, ``error`` or ``gone``), and the answer, or class and sentence.

    Raises:
        Malformed: it is no answer of the method.
    """
    about, body, rest = _read(head, buffers, {"said"})
    said = about["said"]
    if said == "answer":
        return said, codec.unpack(CALLS[name].gives, body, rest)
    if said not in ("error", "gone"):
        raise Malformed(f"a silo said {said!r}, which is no answer.")
    return said, codec.unpack(tuple[str, str], body, rest)


def _taken(name: str, number: int) -> Any:
    call = CALLS[name]
    more = number - len(call.takes)
    if more < 0 or (more and call.rest is None) or more > 4096:
        raise Malformed(f"a message calls '{name}' with {number} arguments.")
    kinds = (*call.takes, *[call.rest] * more)
    return tuple[kinds] if kinds else tuple[()]  # type: ignore[valid-type]


def _packed(about: dict[str, Any], body: Any, buffers: list[Buffer]) -> tuple[bytes, list[Buffer]]:
    text = written(body)
    if len(text) <= _LONGEST:
        return written({**about, "body": body}), buffers
    return written(about), [*buffers, text]


def _read(head: bytes, buffers: Sequence[Buffer], keys: set[str]) -> tuple[dict[str, Any], Any, Sequence[Buffer]]:
    about = parse(head)
    if not isinstance(about, dict) or about.keys() - {"body"} != keys:
        raise Malformed("a message has another form than calls and answers.")
    if "body" in about:
        return about, about["body"], buffers
    if not buffers:
        raise Malformed("a message has no body.")
    return about, parse(bytes(buffers[-1])), buffers[:-1]
