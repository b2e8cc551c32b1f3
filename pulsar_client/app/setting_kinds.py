"""Kinds of values that a setting may have: how each is read, and what to say of a wrong one.

A kind reads text (command line, environment) and the native values of a config file alike.  It
knows no setting by name.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, Protocol

from pulsar_client.addresses import parse_address

__all__ = [
    "Address",
    "Addresses",
    "Choice",
    "Kind",
    "Mode",
    "Names",
    "Optional",
    "Seconds",
    "Text",
    "Whole",
]


class Kind(Protocol):
    """What values a setting takes."""

    @property
    def metavar(self) -> str:
        """The word that stands for a value in the help."""

    @property
    def expected(self) -> str:
        """What is allowed, as the end of the sentence "... is X, expected ..."."""

    def read(self, value: object) -> Any:
        """Give the value of a setting.

        Raises:
            ValueError: it is not allowed.  The message adds to `expected`, or is empty.
        """

    def show(self, value: Any) -> str:
        """Write a value as it could be written on the command line."""


@dataclass(frozen=True)
class Whole:
    """An integer within bounds."""

    least: int
    most: int = 2**31 - 1
    metavar: str = "N"

    @property
    def expected(self) -> str:
        """What is allowed."""
        return f"an integer from {self.least} to {self.most}"

    def read(self, value: object) -> int:
        """Take an integer, or its digits."""
        if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value):
            value = int(value)
        if type(value) is not int or not self.least <= value <= self.most:
            raise ValueError
        return value

    def show(self, value: Any) -> str:
        """Write the digits."""
        return str(value)


@dataclass(frozen=True)
class Seconds:
    """A duration."""

    least: float = 0.0
    metavar: str = "SECONDS"

    @property
    def expected(self) -> str:
        """What is allowed."""
        return f"a number of seconds of at least {self.least:g}"

    def read(self, value: object) -> float:
        """Take a number, or one written as text."""
        if isinstance(value, str):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError
        if not self.least <= value < math.inf:
            raise ValueError
        return float(value)

    def show(self, value: Any) -> str:
        """Write the number, without a point where it needs none."""
        return f"{value:g}"


@dataclass(frozen=True)
class Text:
    """Some text that is not empty: a path, a name."""

    metavar: str
    expected: str

    def read(self, value: object) -> str:
        """Take text; a NUL in it would cut a path short."""
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise ValueError
        return value

    def show(self, value: Any) -> str:
        """Write the text."""
        return str(value)


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]
    metavar: str = "WORD"

    @property
    def expected(self) -> str:
        """What is allowed."""
        return "one of " + ", ".join(self.words)

    def read(self, value: object) -> str:
        """Take one of the words, in any case."""
        if not isinstance(value, str) or value.strip().lower() not in self.words:
            raise ValueError
        return value.strip().lower()

    def show(self, value: Any) -> str:
        """Write the word."""
        return str(value)


@dataclass(frozen=True)
class Mode:
    """Permission bits, in octal digits."""

    metavar: str = "OCTAL"
    expected: str = "octal digits in quotes, such as '0660'"

    def read(self, value: object) -> int:
        """Take text only: whether 660 in a file was meant in octal nobody can tell."""
        if not isinstance(value, str) or not re.fullmatch(r"\s*(0o)?[0-7]{1,4}\s*", value):
            raise ValueError
        return int(value.strip().removeprefix("0o"), 8)

    def show(self, value: Any) -> str:
        """Write octal digits."""
        return f"{value:04o}"


@dataclass(frozen=True)
class Names:
    """Names in an order."""

    metavar: str = "NAMES"
    expected: str = "names separated by commas"

    def read(self, value: object) -> tuple[str, ...]:
        """Take text with commas, or a list of texts."""
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise ValueError
        names = []
        for part in parts:
            if not isinstance(part, str) or not part.strip().isascii():
                raise ValueError
            if part.strip():
                names.append(part.strip())
        return tuple(names)

    def show(self, value: Any) -> str:
        """Write them with commas."""
        return ",".join(value)


@dataclass(frozen=True)
class Addresses:
    """One address or several."""

    metavar: str = "ADDRESS"
    expected: str = "HOST:PORT, :PORT, [IPv6]:PORT or unix:PATH, several separated by commas"

    def read(self, value: object) -> tuple[str, ...]:
        """Take text with commas, or a list of texts; nothing is resolved."""
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not parts:
            raise ValueError
        texts = []
        for part in parts:
            if not isinstance(part, str):
                raise ValueError
            parse_address(part)
            texts.append(part.strip())
        if len(set(texts)) < len(texts) and not all(text.endswith(":0") for text in texts):
            raise ValueError("an address is in it twice")
        return tuple(texts)

    def show(self, value: Any) -> str:
        """Write them with commas."""
        return ",".join(value)


@dataclass(frozen=True)
class Address:
    """One address."""

    metavar: str = "ADDRESS"
    expected: str = "HOST:PORT, :PORT, [IPv6]:PORT or unix:PATH"

    def read(self, value: object) -> str:
        """Take text; nothing is resolved."""
        if not isinstance(value, str):
            raise ValueError
        parse_address(value)
        return value.strip()

    def show(self, value: Any) -> str:
        """Write it."""
        return str(value)


@dataclass(frozen=True)
class Optional:
    """Another kind, or nothing."""

    kind: Kind

    @property
    def metavar(self) -> str:
        """That of the other kind."""
        return self.kind.metavar

    @property
    def expected(self) -> str:
        """What is allowed."""
        return f"{self.kind.expected}, or none"

    def read(self, value: object) -> Any:
        """Take nothing as None or as the word, so that it can take back what a file sets."""
        if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
            return None
        return self.kind.read(value)

    def show(self, value: Any) -> str:
        """Write the word for nothing."""
        return "none" if value is None else self.kind.show(value)
