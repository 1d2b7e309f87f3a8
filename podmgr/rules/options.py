"""The options that every kind takes: where a rule acts, on which packets, when, and whether in earnest."""

from __future__ import annotations

import re
from typing import NamedTuple

from podmgr.errors import Fail, printable
from podmgr.rules import match, timing
from podmgr.rules.match import EVERYTHING, Match
from podmgr.rules.rule import ANYWHERE, MAX_INTERFACES, Hook, Place
from podmgr.rules.timing import ALWAYS, Timing

INTERFACE_CHARACTERS = "A-Za-z0-9_.@-"
_INTERFACE = re.compile(rf"[{INTERFACE_CHARACTERS}]{{1,15}}", re.ASCII)  # IFNAMSIZ is 16
PLACES = ("hook", "interface")
MODE, SHADOW = "mode", "shadow"


class Common(NamedTuple):
    """The options of every kind; its fields are those of `Rule`."""

    place: Place = ANYWHERE
    match: Match = EVERYTHING
    timing: Timing = ALWAYS
    is_shadow: bool = False


class CommonReader:
    """Reads these options, one word at a time. `fail` makes errors at the word that was taken last."""

    names = (*PLACES, *match.OPTIONS, *timing.OPTIONS, MODE)

    def __init__(self, fail: Fail) -> None:
        self.found = Common()
        self._fail = fail
        self._seen: set[str] = set()

    def read(self, word: str) -> bool:
        """Whether the word is such an option; it is then among `found`."""
        name, equals, text = word.partition("=")
        name = name.lower()
        if not equals or name not in self.names:
            return False
        if name in self._seen:
            raise self._fail(f"{name} twice", "each option once")
        self._seen.add(name)
        self.found = self._with(name, text)
        return True

    def done(self) -> Common:
        """All that was found. Raises RuleError if it contradicts itself."""
        match.require_satisfiable(self.found.match, self._fail)
        timing.require_possible(self.found.timing, self._fail)
        return self.found

    def _with(self, name: str, text: str) -> Common:
        found, fail = self.found, self._fail
        if name in match.OPTIONS:
            return found._replace(match=match.with_option(found.match, name, text, fail))
        if name in timing.OPTIONS:
            return found._replace(timing=timing.with_option(found.timing, name, text, fail))
        if name == MODE:
            if text.lower() != SHADOW:
                raise fail(
                    f"unknown mode {printable(text)[:40]!r}", "mode=shadow, which counts and touches nothing"
                )
            return found._replace(is_shadow=True)
        place = found.place
        place = (
            place._replace(hook=_hook(text, fail))
            if name == "hook"
            else place._replace(interfaces=_interfaces(text, fail))
        )
        if place.hook is Hook.CGROUP and place.interfaces:
            raise fail("the cgroup hook knows no interfaces", "interface=NAME with hook=tc, or without hook=")
        return found._replace(place=place)


def _hook(text: str, fail: Fail) -> Hook:
    try:
        return Hook(text.lower())
    except ValueError:
        raise fail(f"unknown hook {text!r}", "cgroup or tc") from None


def _interfaces(text: str, fail: Fail) -> tuple[str, ...]:
    """The names of `interface=NAME[,NAME]...`, sorted, each once."""
    names = text.split(",")
    for name in names:
        if not (_INTERFACE.fullmatch(name) and name.strip(".")):
            expected = "interface=NAME or interface=NAME,NAME; a name has 15 characters at most"
            raise fail(f"{printable(name)[:60]!r} names no interface", expected)
    if len(names) > MAX_INTERFACES:
        raise fail(f"{len(names)} interfaces", f"{MAX_INTERFACES} at most")
    return tuple(sorted(set(names)))
