"""From a rule to a checked object: find the source, make the spec, compile, inspect."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

from podmgr import proc
from podmgr.errors import PodmgrError
from podmgr.kernel.bpf_syscall import possible_cpus
from podmgr.proc import Each, Runner
from podmgr.programs import clang, elf, gate, verdicts, vmlinux
from podmgr.programs.find import find_gate, find_source, find_table, require_system
from podmgr.programs.spec import ProgramSource, ProgramSpec, make_spec
from podmgr.programs.store import ObjectStore, StoredObject
from podmgr.rules.distributions import quantiles_macro
from podmgr.rules.rule import Hook, Rule
from podmgr.settings import DEFAULT_MAX_MAP_BYTES, Settings

_ANY_SIZE = 1 << 62


class Compiled(NamedTuple):
    """An object in memory, checked."""

    content: bytes
    info: elf.ObjectInfo


class NotCompiledError(PodmgrError):
    """A program is not compiled yet, and is not to be now."""

    def __init__(self, name: str) -> None:
        super().__init__(f"program {name} is not compiled yet", tip="wait for it")


_Wanted = tuple[tuple[Rule, ...], bool, Hook | None, bool, bool, int]
Specs = Mapping[_Wanted, ProgramSpec | PodmgrError]


class SpecMaker:
    """Makes specs, each once; each program is looked up and each compiler asked for once.

    A custom source goes through the preprocessor here: what it includes is part of its digest. `known` are
    the specs that another maker has made, or could not make.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        runner: Runner = proc.run,
        known: Specs = MappingProxyType({}),
    ) -> None:
        self._settings = settings
        self._runner = runner
        self._sources: dict[str, ProgramSource] = {}
        self.known = dict(known)
        self._compiler: str | None = None

    def spec(
        self,
        *rules: Rule,
        counts_loopback: bool,
        hook: Hook | None = None,
        is_scoped: bool = False,
        is_matched: bool = False,
        container_level: int = 0,
        may_compile: bool = True,
    ) -> ProgramSpec:
        """The spec of a rule, or of several that share a program.

        Raises PodmgrError if the program cannot be had or used, NotCompiledError if that takes a compiler
        and may not.
        """
        wanted = (rules, counts_loopback, hook, is_scoped, is_matched, container_level)
        found = self.known.get(wanted)
        if found is None and rules[0].brings_program and not may_compile:
            raise NotCompiledError(rules[0].program)
        if found is None:
            try:
                found = self._made(wanted)
            except PodmgrError as error:
                found = error
            self.known[wanted] = found
        if isinstance(found, PodmgrError):
            raise found
        return found

    def _made(self, wanted: _Wanted) -> ProgramSpec:
        rules, counts_loopback, hook, is_scoped, is_matched, container_level = wanted
        name = rules[0].program
        if name not in self._sources:
            self._sources[name] = find_source(
                name, self._settings, vmlinux=lambda: vmlinux.header(runner=self._runner)
            )
        source = self._sources[name]
        if not source.is_object and self._compiler is None:
            self._compiler = clang.identity()
        spec = make_spec(
            rules,
            source,
            self._compiler or "",
            counts_loopback=counts_loopback,
            hook=hook,
            is_scoped=is_scoped,
            is_matched=is_matched,
            container_level=container_level,
        )
        if rules[0].table:
            spec = replace(spec, table=(quantiles_macro(find_table(rules[0].table, self._settings)),))
        if not (source.is_object or source.is_own):
            spec = replace(spec, text=_preprocessed(spec, spec.macros, self._runner))
            spec = replace(spec, gate=find_gate()) if spec.needs_gate else spec
        return spec


def compile_spec(
    spec: ProgramSpec, *, runner: Runner, max_map_bytes: int = DEFAULT_MAX_MAP_BYTES
) -> Compiled:
    """Compile (or take the ready object) and check it. An object with a program for each direction
    keeps the rule's.

    Raises PodmgrError with clang's lines, or with the reason why the object is refused.
    """
    name, source, text = spec.source.name, spec.source, spec.text
    if source.is_object:
        content = source.content
    elif source.is_own:
        content = clang.compile_c(source.content, name=name, macros=spec.macros, runner=runner)
    else:
        content = clang.compile_c(text, name=name, is_preprocessed=True, runner=runner)
    info = _inspected(spec, content, max_map_bytes)
    if info.hook == Hook.TC and _takes_header_for_cgroup(source):
        text = _preprocessed(spec, (*spec.macros, ("PODMGR_TC", "1")), runner)
        content = clang.compile_c(text, name=name, is_preprocessed=True, runner=runner)
        info = _inspected(spec, content, max_map_bytes)
    elf.check_direction(info, spec.direction, name=name)
    if spec.gate:
        text = gate.before(text, _gate(spec, info, runner), info, name=name)
        content = clang.compile_c(text, name=name, is_preprocessed=True, runner=runner)
        info = _inspected(spec, content, _ANY_SIZE)  # that of the program's own maps is seen
        gate.require(info, name=name)
    content = elf.without_others(content, info.section)
    if info.hook == Hook.TC and not source.is_own:
        content = verdicts.passing_on(content, info, name=name)
    return Compiled(content, info)


def _inspected(spec: ProgramSpec, content: bytes, max_map_bytes: int) -> elf.ObjectInfo:
    return elf.inspect(
        content,
        name=spec.source.name,
        direction=spec.direction,
        cpus=possible_cpus(),
        max_map_bytes=max_map_bytes,
    )


def _gate(spec: ProgramSpec, info: elf.ObjectInfo, runner: Runner) -> bytes:
    """What stands before a program of this hook and function. It includes nothing of the system's."""
    gated = (("PODMGR_GATED", info.function), ("PODMGR_GATED_SECTION", f'"{info.section}"'))
    hook = ("PODMGR_TC", str(int(info.hook == Hook.TC)))
    macros = (*spec.gate_macros, hook, *gated)
    return clang.preprocess(spec.gate, name=spec.source.name, macros=macros, runner=runner)[0]


def _preprocessed(spec: ProgramSpec, macros: tuple[tuple[str, str | None], ...], runner: Runner) -> bytes:
    """The source with all that it includes, which is part of it or the system's."""
    name = spec.source.name
    text, files = clang.preprocess(spec.source.content, name=name, macros=macros, runner=runner)
    require_system(files, name)
    return text


def _takes_header_for_cgroup(source: ProgramSource) -> bool:
    """Whether the verdicts of podmgr.h would be those of the cgroup hook, where drop is another number.

    Only the compiled section tells of which hook a program is; its source may say it as well.
    """
    has_header = not source.is_object and b"define PODMGR_H\n" in source.content
    says_hook = re.search(rb"^[ \t]*#[ \t]*define[ \t]+PODMGR_TC[ \t]+1\b", source.content, re.MULTILINE)
    return has_header and not source.is_own and not says_hook


Made = Compiled | PodmgrError


def compile_all(
    specs: Iterable[ProgramSpec],
    store: ObjectStore,
    *,
    runner: Runner,
    max_map_bytes: int = DEFAULT_MAX_MAP_BYTES,
    each: Each = proc.each,
) -> dict[str, Made]:
    """What is not in the store, compiled, by each spec's digest; or why not. Touches no file."""
    missing = {spec.digest: spec for spec in specs if store.find(spec.digest) is None}

    def make(spec: ProgramSpec) -> Made:
        try:
            return compile_spec(spec, runner=runner, max_map_bytes=max_map_bytes)
        except PodmgrError as error:
            return error

    return dict(zip(missing, each(make, list(missing.values())), strict=True))


def store_all(
    specs: Iterable[ProgramSpec], store: ObjectStore, made: Mapping[str, Made]
) -> dict[str, StoredObject | PodmgrError]:
    """An object for each spec's digest: from the store, or of what was `made`; or why there is none."""
    return {spec.digest: _stored(store, spec, made.get(spec.digest)) for spec in specs}


def _stored(store: ObjectStore, spec: ProgramSpec, made: Made | None) -> StoredObject | PodmgrError:
    if isinstance(made, Compiled):
        try:
            return store.add(spec.digest, made.info.hook, made.content)
        except PodmgrError as error:
            return error
    return store.find(spec.digest) or made or NotCompiledError(spec.source.name)
