"""From a rule to a checked object: find the source, make the spec, compile, inspect."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from podmgr import clang, elf, programs
from podmgr.bpf_syscall import possible_cpus
from podmgr.catalog import recipe
from podmgr.errors import PodmgrError
from podmgr.objects import ObjectStore, StoredObject
from podmgr.proc import Runner
from podmgr.rules import Rule
from podmgr.settings import Settings
from podmgr.spec import ProgramSource, ProgramSpec, make_spec


@dataclass(frozen=True, slots=True)
class Compiled:
    """An object in memory, checked."""

    content: bytes
    info: elf.ObjectInfo


class SpecMaker:
    """Makes specs; each program is looked up and each compiler asked for once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sources: dict[str, ProgramSource] = {}
        self._compiler: str | None = None

    def spec(self, rule: Rule, *, counts_loopback: bool) -> ProgramSpec:
        """The spec of a rule. Raises PodmgrError if its program cannot be had or used."""
        name = recipe(rule).program
        if name not in self._sources:
            self._sources[name] = programs.find(name, self._settings)
        source = self._sources[name]
        if not source.is_object and self._compiler is None:
            self._compiler = clang.identity()
        return make_spec(rule, source, self._compiler or "", counts_loopback=counts_loopback)


def compile_spec(spec: ProgramSpec, *, runner: Runner) -> Compiled:
    """Compile (or take the ready object) and check it.

    Raises PodmgrError with clang's lines, or with the reason why the object is refused.
    """
    name = spec.source.name
    if spec.source.is_object:
        content = spec.source.content
    else:
        content = clang.compile_c(
            spec.source.content,
            name=name,
            macros=spec.macros,
            include_dirs=spec.source.include_dirs,
            runner=runner,
        )
    info = elf.inspect(content, name=name, cpus=possible_cpus())
    elf.check_direction(info, spec.direction, name=name)
    return Compiled(content, info)


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

    def make(spec: ProgramSpec) -> StoredObject | PodmgrError:
        try:
            compiled = compile_spec(spec, runner=runner)
            return store.add(spec.digest, compiled.info.hook, compiled.content)
        except PodmgrError as error:
            return error

    if missing:
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            results.update(zip((spec.digest for spec in missing), pool.map(make, missing), strict=True))
    return results
