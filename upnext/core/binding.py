"""A call bound to its function's signature: arguments -> payload at submit, payload -> arguments in the worker.

A payload is the JSON object {name: value}, the names of **kwargs among the others. A function with positional-only parameters
or *args has the array [[positional], {by name}] instead. Defaults are not sent: the worker's own apply.

Annotations are looked up at first use, not at declaration, so they may name what the module defines further down.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, Optional, cast

import orjson

from upnext.core import codec
from upnext.core.adapters import Kind, LossyError, UnfitError, is_json, kind_of
from upnext.core.annotations import Flat, UnresolvedError, refusal, resolve
from upnext.errors import EncodingError, InvalidArgumentsError, ServiceError

_loads = orjson.loads
_dumps = codec.dumps
_Parameter = inspect.Parameter

RESULT_CAP_BYTES = 16 * 1024 * 1024
"""Cap of an encoded result: it is published to its waiter, and a broker cuts off subscribers that lag by 32 MB."""


class Signature:
    """What a function takes and gives; implements `upnext.core.spec.Arguments`. Made by `Signature.of`."""

    __slots__ = (
        "_arrayed",
        "_flat",
        "_flat_only",
        "_function",
        "_kinds",
        "_name",
        "_parameters",
        "_places",
        "_positional",
        "_positional_only",
        "_prepared",
        "_required",
        "_rest",
        "_result",
        "_returns",
        "_straight",
        "_takes_any_name",
        "names",
    )

    names: frozenset[str]
    """Names of the parameters that can be given by name (without those that **kwargs takes)."""

    def __init__(self, function: Callable[..., Any], parameters: list[_Parameter], returns: Any, name: str) -> None:
        self._function = function
        self._parameters = parameters
        self._returns = returns
        self._name = name
        by_kind: dict[Any, list[str]] = {kind: [] for kind in type(_Parameter.KEYWORD_ONLY)}
        for parameter in parameters:
            by_kind[parameter.kind].append(parameter.name)
        only, either = by_kind[_Parameter.POSITIONAL_ONLY], by_kind[_Parameter.POSITIONAL_OR_KEYWORD]
        self._positional = (*only, *either)
        self._positional_only = frozenset(only)
        self._places = None if by_kind[_Parameter.VAR_POSITIONAL] else len(self._positional)
        self._takes_any_name = bool(by_kind[_Parameter.VAR_KEYWORD])
        self._arrayed = bool(only) or self._places is None
        self.names = frozenset([*either, *by_kind[_Parameter.KEYWORD_ONLY]])
        self._required = frozenset(
            p.name for p in parameters if p.default is p.empty and p.name in {*self.names, *only}
        )
        self._prepared = False
        self._straight = False
        self._kinds: dict[str, Kind] = {}
        self._flat: tuple[tuple[str, Flat], ...] = ()
        self._flat_only = False
        self._rest: tuple[Kind | None, Kind | None] = (None, None)
        self._result: Kind | None = None

    @classmethod
    def of(cls, function: Callable[..., Any], *, skip: int = 0, name: str | None = None) -> Signature:
        """The signature of `function` without its first `skip` parameters, called `name` in messages (default: its own name)."""
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())[skip:]
        shown = name or getattr(function, "__name__", None) or type(function).__name__
        return cls(function, parameters, signature.return_annotation, shown)

    @property
    def is_prepared(self) -> bool:
        """Whether `prepare` was done."""
        return self._prepared

    def check(self) -> list[str]:
        """-> a line for each annotation that names what isn't there at run time.

        Raises ServiceError for an annotation whose values can't come back from JSON as they went.
        """
        names, unresolved = _globals(self._function), list[str]()
        for what, annotation in self._annotations():
            try:
                why = refusal(resolve(annotation, names))
            except UnresolvedError as error:
                unresolved.append(
                    f"{self._name}(): the annotation {_shown_annotation(annotation)} of {what} can't be looked up ({error}): "
                    "it travels as plain JSON; import its type at module level, outside of TYPE_CHECKING"
                )
            else:
                if why is not None:
                    raise ServiceError(f"{self._name}(): {what}: {why}")
        return unresolved

    def _annotations(self) -> list[tuple[str, Any]]:
        """(of what, annotation)"""
        given = [(f"argument {p.name!r}", _annotation_of(p)) for p in self._parameters]
        return [*given, ("the result", _annotation(self._returns))]

    def prepare(self) -> None:
        """Looks up the annotations and makes the adapters now (else at first use): call it before forking workers."""
        names = _globals(self._function)
        kinds = {p.name: _kind(_annotation_of(p), names) for p in self._parameters}
        starred = {p.kind: p.name for p in self._parameters}
        self._rest = (
            kinds.pop(starred.get(_Parameter.VAR_POSITIONAL, ""), None),
            kinds.pop(starred.get(_Parameter.VAR_KEYWORD, ""), None),
        )
        self._kinds = {name: kind for name, kind in kinds.items() if kind is not None}
        self._flat = tuple((name, kind.flat) for name, kind in self._kinds.items() if kind.flat is not None)
        self._flat_only = len(self._flat) == len(self._kinds) and self._rest[1] is None
        result = _kind(_annotation(self._returns), names)
        self._result = None if result is None or result.plain else result
        self._straight = self._flat_only and not self._arrayed
        for kind in (*self._kinds.values(), *self._rest, self._result):
            if kind is not None:
                kind.prepare()
        self._prepared = True

    # ---- submit

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """-> payload. Raises InvalidArgumentsError (shows the signature) or EncodingError (names the argument)."""
        if self._arrayed:
            return self._encode_array(args, kwargs)
        values = self._by_name(args, kwargs) if args else kwargs
        if values.keys() != self.names:
            self._check(values.keys(), self._required, self.names)
        if not self._prepared:
            self.prepare()
        plain = self._flat_only and _are_flat(values, self._flat)  # most calls
        try:
            return _dumps(values if plain else self._dumped(values), "argument ")
        except EncodingError as error:
            raise EncodingError(f"{self._name}(): {error}") from error

    def encode_event(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """-> payload of an event, which is always an object, because every handler reads it. Raises as `encode` does."""
        if self._places is None and len(args) > len(self._positional):
            self._refuse("an event carries named values only, none for *args")
        values = self._by_name(args, kwargs)
        self._check(values.keys(), self._required, self.names | self._positional_only)
        if not self._prepared:
            self.prepare()
        try:
            return _dumps(self._dumped(values), "argument ")
        except EncodingError as error:
            raise EncodingError(f"{self._name}(): {error}") from error

    @classmethod
    def encode_fields(cls, fields: Mapping[str, Any], handlers: Iterable[Signature], where: str) -> bytes:
        """-> payload of an event that is sent by its fields' names, which each of these handlers can read.

        What is more than JSON is written as a handler that declares it reads it, a model that none declares as its own type does.
        Raises InvalidArgumentsError for a value that one of them refuses, EncodingError for one that has no JSON form, or would not
        come back.
        """
        careful: list[Signature] = []
        flat: tuple[tuple[str, Flat], ...] | None = None
        known: Mapping[str, Kind] = {}
        for one in handlers:
            own, kinds, rest = one._flat, one._kinds, one._rest[1]  # noqa: SLF001 - of its own class
            if (
                own and len(own) == len(kinds) and rest is None and (own == flat or _are_flat(fields, own))
            ):  # most of them
                flat, known = own, kinds
            else:
                careful.append(one)
        written = {
            name: value
            if value.__class__ in _SCALARS or name in known or is_json(value)
            else cls._dumped_field(name, value, careful, where)
            for name, value in fields.items()
        }
        raw = _dumps(written, where)
        for one in careful:
            one._check_fields(written, where)  # noqa: SLF001 - of its own class
        return raw

    @staticmethod
    def _dumped_field(name: str, value: object, handlers: Iterable[Signature], where: str) -> Any:
        kinds = [one._kind(name) for one in handlers]  # noqa: SLF001 - of its own class
        if hasattr(type(value), "__pydantic_serializer__"):
            kinds.append(kind_of(type(value)))
        for kind in kinds:
            if kind is not None:
                try:
                    return kind.dump(value)
                except (UnfitError, EncodingError):
                    continue
                except LossyError as error:
                    raise EncodingError(f"{where}{name}: {error}") from error
        return value

    def _kind(self, name: str) -> Kind | None:
        if not self._prepared:
            self.prepare()
        taken_by_name = name in self.names or name in self._positional_only
        return self._kinds.get(name) if taken_by_name else self._rest[1]

    def _check_fields(self, fields: Mapping[str, Any], where: str) -> None:
        """Raises InvalidArgumentsError for a field of an event that this handler would refuse. Others than its own are not looked at."""
        for name, value in fields.items():
            kind = self._kind(name)
            if kind is not None:
                try:
                    kind.load(value if is_json(value) else _loads(_dumps(value, "")))
                except UnfitError as error:
                    raise InvalidArgumentsError(
                        f"{where}field {name!r} doesn't fit: {error}; a handler is {self.describe()}"
                    ) from error

    def encode_result(self, value: Any) -> bytes:
        """-> JSON. Raises EncodingError naming which part of the value has no JSON form or would not come back, or for one over the cap.

        A value that isn't of the annotated type is dumped as it is: `decode_result` says so to those who wait for it.
        """
        if value is None:
            return b"null"
        if not self._prepared:
            self.prepare()
        if self._result is not None:
            value = self._dumped_result(self._result, value)
        raw = _dumps(value, "result")
        if len(raw) > RESULT_CAP_BYTES:
            raise EncodingError(
                f"the result is {len(raw):,} bytes as JSON, over the cap of {RESULT_CAP_BYTES:,}: "
                "store the data elsewhere and return a reference"
            )
        return raw

    def _dumped_result(self, kind: Kind, value: Any) -> Any:
        try:
            return kind.dump(value)
        except UnfitError:
            return value
        except LossyError as error:
            raise EncodingError(f"result: {error}") from error

    def _dumped(self, values: Mapping[str, Any]) -> dict[str, Any]:
        kinds, rest = self._kinds, self._rest[1]
        dumped: dict[str, Any] = {}
        for name, value in values.items():
            kind = kinds.get(name)
            if kind is None and name not in self.names and name not in self._positional_only:
                kind = rest
            dumped[name] = value if kind is None else self._dumped_one(name, kind, value)
        return dumped

    def _dumped_one(self, name: str, kind: Kind, value: Any) -> Any:
        try:
            return kind.dump(value)
        except (UnfitError, EncodingError) as error:
            _dumps({name: value}, "argument ")  # that it has no JSON form at all says more
            self._refuse(f"argument {name!r} doesn't fit: {error}", error)
        except LossyError as error:
            raise EncodingError(f"argument {name}: {error}") from error

    def _by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if len(args) > len(self._positional):
            self._refuse(f"takes {len(self._positional)} positional arguments, got {len(args)}")
        values = dict(zip(self._positional, args))  # noqa: B905 - strict=False costs a third of it
        if kwargs:
            for name in kwargs:
                if name in values:
                    self._refuse(f"got argument {name!r} twice")
            values.update(kwargs)
        return values

    def _encode_array(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        if self._places is not None and len(args) > self._places:
            self._refuse(f"takes {self._places} positional arguments, got {len(args)}")
        for name in self._positional[: len(args)]:
            if name in kwargs and name not in self._positional_only:
                self._refuse(f"got argument {name!r} twice")
        self._check_array(args, kwargs)
        if not self._prepared:
            self.prepare()
        try:
            dumped = [self._dumped_place(index, value) for index, value in enumerate(args)]
            return _dumps([dumped, self._dumped(kwargs)], "arguments")
        except EncodingError as error:
            raise EncodingError(f"{self._name}(): {error}") from error

    def _dumped_place(self, index: int, value: Any) -> Any:
        name, kind = self._place(index)
        return value if kind is None else self._dumped_one(name, kind, value)

    def _place(self, index: int) -> tuple[str, Kind | None]:
        """What stands at a position: its name for messages, and its type."""
        if index < len(self._positional):
            name = self._positional[index]
            return name, self._kinds.get(name)
        return f"[{index}]", self._rest[0]

    # ---- worker

    def decode(self, payload: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """-> (args, kwargs) converted by annotation. Raises InvalidArgumentsError."""
        if self._straight:  # most jobs: every argument there, and none to convert
            try:
                values = _loads(payload)
            except ValueError:
                return self._decode_carefully(payload)
            if values.__class__ is dict and values.keys() == self.names and _are_flat(values, self._flat):
                return (), values
        return self._decode_carefully(payload)

    def _decode_carefully(self, payload: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not self._prepared:
            self.prepare()
        values = self._load(payload)
        if self._arrayed:
            return self._decode_array(values)
        if type(values) is not dict:
            self._refuse("the payload is not a JSON object")
        values = cast("dict[str, Any]", values)
        if values.keys() != self.names:
            self._check(values.keys(), self._required, self.names)
        if self._kinds or self._rest[1] is not None:
            self._convert(values)
        return (), values

    def decode_event(self, payload: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """As `decode`, of an event's payload: fields that the handler doesn't name are dropped, unless it has **kwargs."""
        if not self._prepared:
            self.prepare()
        values = self._load(payload)
        if type(values) is not dict:
            self._refuse("the event's payload is not a JSON object")
        values = cast("dict[str, Any]", values)
        known = self.names | self._positional_only
        if values.keys() != known:
            if not self._takes_any_name:
                values = {name: values[name] for name in values if name in known}
            self._check(values.keys(), self._required, known)
        self._convert(values)
        if not self._positional_only:
            return (), values
        args: list[Any] = []
        for name in self._positional:
            if name not in self._positional_only or name not in values:
                break
            args.append(values.pop(name))
        for name in self._positional_only:  # those after a gap: only their defaults can be passed
            values.pop(name, None)
        return tuple(args), values

    def decode_result(self, raw: bytes) -> Any:
        """JSON -> value converted by the return annotation; plain JSON values where there is none.

        Raises EncodingError when the function returned something else than it is annotated with.
        """
        if not self._prepared:
            self.prepare()
        value = _loads(raw)
        if self._result is None:
            return value
        try:
            return self._result.load(value)
        except UnfitError as error:
            shown = _shown_annotation(self._returns)
            raise EncodingError(f"the result of {self._name}() is no {shown} as annotated: {error}") from error

    def _load(self, payload: bytes) -> Any:
        try:
            return _loads(payload)
        except ValueError as error:
            self._refuse(f"the payload is not JSON ({error})")

    def _convert(self, values: dict[str, Any]) -> None:
        for name, kind in self._kinds.items():
            if name in values:
                values[name] = self._loaded(name, kind, values[name])
        rest = self._rest[1]
        if rest is not None:
            for name in values.keys() - self.names - self._positional_only:
                values[name] = self._loaded(name, rest, values[name])

    def _loaded(self, name: str, kind: Kind, value: Any) -> Any:
        try:
            return kind.load(value)
        except UnfitError as error:
            self._refuse(f"argument {name!r} doesn't fit: {error}", error)

    def _decode_array(self, values: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        match values:
            case [list(), dict()]:
                args, kwargs = cast("list[Any]", values[0]), cast("dict[str, Any]", values[1])
            case _:
                self._refuse("the payload is not of the form [[positional], {by name}]")
        if self._places is not None and len(args) > self._places:
            self._refuse(f"takes {self._places} positional arguments, got {len(args)}")
        self._check_array(tuple(args), kwargs)
        for index, value in enumerate(args):
            name, kind = self._place(index)
            if kind is not None:
                args[index] = self._loaded(name, kind, value)
        self._convert(kwargs)
        return tuple(args), kwargs

    # ---- refusals

    def _check_array(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        taken = frozenset(self._positional[: len(args)])
        if not self._takes_any_name:
            for name in self._positional_only & kwargs.keys():
                self._refuse(f"takes argument {name!r} by position only")
        self._check(kwargs.keys(), self._required - taken, self.names)

    def _check(self, given: Any, required: frozenset[str], known: frozenset[str]) -> None:
        missing = required - given
        if missing:
            ordered = [p.name for p in self._parameters if p.name in missing]
            self._refuse(f"lacks argument {', '.join(map(repr, ordered))}")
        if self._takes_any_name:
            return
        unknown = sorted(given - known)
        if unknown:
            near = difflib.get_close_matches(unknown[0], known - given, n=1)
            guess = f" (did you mean {near[0]!r}?)" if near else ""
            self._refuse(f"has no argument {', '.join(map(repr, unknown))}{guess}")

    def _refuse(self, what: str, cause: BaseException | None = None) -> NoReturn:
        raise InvalidArgumentsError(f"{self._name}() {what}; its signature is {self.describe()}") from cause

    def describe(self) -> str:
        """The signature as a person writes it: `process_order(order_id: str, items: list[str]) -> dict`."""
        parts: list[str] = []
        last = None
        for parameter in self._parameters:
            if last is _Parameter.POSITIONAL_ONLY and parameter.kind is not last:
                parts.append("/")
            if parameter.kind is _Parameter.KEYWORD_ONLY and last not in (parameter.kind, _Parameter.VAR_POSITIONAL):
                parts.append("*")
            parts.append(_shown_parameter(parameter))
            last = parameter.kind
        if last is _Parameter.POSITIONAL_ONLY:
            parts.append("/")
        returns = "" if self._returns is _Parameter.empty else f" -> {_shown_annotation(self._returns)}"
        return f"{self._name}({', '.join(parts)}){returns}"


def _are_flat(values: Mapping[str, Any], flat: tuple[tuple[str, Flat], ...]) -> bool:
    """Whether each value is one of JSON's own and of the annotated class. On the way of every job: without a further call."""
    for name, (outer, keyed, classes) in flat:
        if name not in values:
            continue
        value = values[name]
        if outer is None:
            fits = classes is None or value.__class__ in classes
        else:
            fits = value.__class__ is outer and not (keyed and not _TEXT.issuperset(map(type, value)))
            if fits and classes is not None:
                fits = classes.issuperset(map(type, value if outer is list else value.values()))
        if not fits:
            return False
    return True


_TEXT = frozenset({str})
_SCALARS = frozenset({str, int, float, bool, type(None)})
_STARS = {_Parameter.VAR_POSITIONAL: "*", _Parameter.VAR_KEYWORD: "**"}


def _shown_parameter(parameter: _Parameter) -> str:
    text = _STARS.get(parameter.kind, "") + parameter.name
    annotated = parameter.annotation is not parameter.empty
    if annotated:
        text += f": {_shown_annotation(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        default = repr(parameter.default)
        text += (" = " if annotated else "=") + (default if len(default) <= 60 else "...")
    return text


def _shown_annotation(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation
    return inspect.formatannotation(annotation)


def _annotation(annotation: Any) -> Any:
    return Any if annotation is _Parameter.empty else annotation


def _annotation_of(parameter: _Parameter) -> Any:
    """As written, or with the None that its default adds."""
    annotation = _annotation(parameter.annotation)
    if parameter.default is not None or annotation is Any:
        return annotation
    return f"({annotation}) | None" if isinstance(annotation, str) else Optional[annotation]  # noqa: UP045 - what is annotated may have no `|`


def _kind(annotation: Any, names: dict[str, Any]) -> Kind | None:
    try:
        return kind_of(resolve(annotation, names))
    except UnresolvedError:
        return None  # `check` says so


def _globals(function: Any) -> dict[str, Any]:
    """Where the names in its annotations are looked up."""
    function = inspect.unwrap(function)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(cast("Any", function).func)
    if not hasattr(function, "__globals__"):
        function = getattr(type(function).__call__, "__func__", type(function).__call__)
    return cast("dict[str, Any]", getattr(function, "__globals__", {}))
