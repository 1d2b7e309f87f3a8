"""Where a rule was written: on the command line, or on a pod, a service or a namespace."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from podmgr.rules.rule import Rule


class Layer(StrEnum):
    """Of two layers whose rules collide, the later one here wins."""

    UNKNOWN = "unknown"  # of an attachment that no ledger tells of
    STANDARD = "standard"  # Kubernetes' own annotations of a pod
    NAMESPACE = "namespace"
    SERVICE = "service"
    POD = "pod"
    CLI = "cli"


_STRENGTHS = {layer: strength for strength, layer in enumerate(Layer)}


class Source(NamedTuple):
    """A layer, and of services and namespaces which one. `str()` is `service/NAME`, or `pod`."""

    layer: Layer
    name: str = ""

    @property
    def strength(self) -> int:
        """Of two sources whose rules collide, the one that wins has the greater strength."""
        return _STRENGTHS[self.layer]

    def __str__(self) -> str:
        return f"{self.layer}/{self.name}" if self.name else str(self.layer)


UNKNOWN, STANDARD, POD, CLI = (
    Source(layer) for layer in (Layer.UNKNOWN, Layer.STANDARD, Layer.POD, Layer.CLI)
)


def parse_source(text: str) -> Source:
    """The source that is written so. Raises ValueError."""
    layer, _, name = text.partition("/")
    return Source(Layer(layer), name)


class SourcedRule(NamedTuple):
    """A rule and where it was written.

    An enforced rule holds beside a colliding one of another source.
    """

    rule: Rule
    source: Source
    is_enforced: bool = False
