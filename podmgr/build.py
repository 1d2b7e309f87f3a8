"""From a rule to a checked object: find the source, make the spec, compile, inspect."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from podmgr import clang, elf, programs
from podmgr.bpf_syscall import possible_cpus
from podmgr.catalog import BUILT_IN_PROGRAMS, recipe
from podmgr.errors import PodmgrError
from podmgr.objects import ObjectStore, StoredObject
from podmgr.proc import Runner, each
from podmgr.rules import Hook, Rule
from podmgr.settings import Settings
from podmgr.spec import ProgramSource, ProgramSpec, make_spec


class Compiled(NamedTuple):
    """An object in memory, checked."""

    content: bytes
    info: elf.ObjectInfo


class SpecMaker:
    """Makes specs, each once; each program is looked up and each compiler asked for once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sources: dict[str, ProgramSource] = {}
        self._specs: dict[tuple[Rule, bool, Hook | None, bool], ProgramSpec] = {}
        self._compiler: str | None = None

    def spec(
        self, rule: Rule, *, counts_loopback: bool, hook: Hook | None = None, is_scoped: bool = False
    ) -> ProgramSpec:
        """The spec of a rule. Raises PodmgrError if its program cannot be had or used."""
        wanted = (rule, counts_loopback, hook, is_scoped)
        if wanted in self._specs:
            return self._specs[wanted]
        name = recipe(rule).program
        if name not in self._sources:
            self._sources[name] = programs.find(name, self._settings)
        source = self._sources[name]
        if not source.is_object and self._compiler is None:
            self._compiler = clang.identity()
        self._specs[wanted] = make_spec(
            rule,
            source,
            self._compiler or "",
            counts_loopback=counts_loopback,
            hook=hook,
            is_scoped=is_scoped,
        )
        return self._specs[wanted]


def compile_spec(spec: ProgramSpec, *, runner: Runner) -> Compiled:
    """Compile (or take the ready object) and check it.

    Raises PodmgrError with clang's lines, or with the reason why the object is refused.
    """
    compiled = _compiled(spec, spec.macros, runner)
    if compiled.info.hook == Hook.TC and _takes_header_for_cgroup(spec.source):
        compiled = _compiled(spec, (*spec.macros, ("PODMGR_TC", "1")), runner)
    elf.check_direction(compiled.info, spec.direction, name=spec.source.name)
    return compiled


def _compiled(spec: ProgramSpec, macros: tuple[tuple[str, str | None], ...], runner: Runner) -> Compiled:
    name, content = spec.source.name, spec.source.content
    if not spec.source.is_object:
        content = clang.compile_c(content, name=name, macros=macros, runner=runner)
    return Compiled(content, elf.inspect(content, name=name, cpus=possible_cpus()))


def _takes_header_for_cgroup(source: ProgramSource) -> bool:
    """Whether the verdicts of podmgr.h would be those of the cgroup hook, where drop is another number.

    Only the compiled section tells of which hook a program is; its source may say it as well.
    """
    has_header = not source.is_object and b"define PODMGR_H\n" in source.content
    says_hook = re.search(rb"^[ \t]*#[ \t]*define[ \t]+PODMGR_TC[ \t]+1\b", source.content, re.MULTILINE)
    return has_header and source.name not in BUILT_IN_PROGRAMS and not says_hook


def store_all(
    specs: Iterable[ProgramSpec], store: ObjectStore, *, runner: Runner
) -> dict[str, StoredObject | PodmgrError]:
    """An object for each spec's digest, compiled where it is not in the store; or why not."""
    unique = {spec.digest: spec for spec in specs}
    results: dict[str, StoredObject | PodmgrError] = {}
    missing: list[ProgramSpec] = []
    for digest, spec in unique.items():
        stored = store.find(digest)
        if stored is None:
            missing.append(spec)
        else:
            results[digest] = stored

    def make(spec: ProgramSpec) -> Compiled | PodmgrError:
        try:
            return compile_spec(spec, runner=runner)
        except PodmgrError as error:
            return error

    if missing:
        made = each(make, missing)  # compiles and touches no file: what outlives Ctrl-C does no harm
        for spec, compiled in zip(missing, made, strict=True):
            results[spec.digest] = (
                compiled if isinstance(compiled, PodmgrError) else _stored(store, spec.digest, compiled)
            )
    return results


def _stored(store: ObjectStore, digest: str, compiled: Compiled) -> StoredObject | PodmgrError:
    try:
        return store.add(digest, compiled.info.hook, compiled.content)
    except PodmgrError as error:
        return error
