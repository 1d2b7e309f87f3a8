"""Rules to object files, and what they mean in numbers: what `podmgr compile` does.

Apart from the command, which alone uses it: --help shall load no compiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podmgr.proc import Runner
from podmgr.programs.build import Compiled, SpecMaker, compile_spec
from podmgr.programs.spec import ProgramSpec
from podmgr.refusals import failed
from podmgr.rules.hooks import chosen_hook, require_possible
from podmgr.rules.rule import Hook, Rule
from podmgr.settings import Settings


@dataclass(frozen=True, slots=True)
class Result:
    """One rule's object; `path` None: not written."""

    spec: ProgramSpec
    compiled: Compiled
    path: Path | None

    @property
    def rule(self) -> Rule:
        return self.spec.rules[0]


def compile_rules(
    rules: Sequence[Rule], settings: Settings, *, output_dir: Path | None, runner: Runner
) -> list[Result]:
    """Compile and check each rule as for a pod; write the objects if there is a folder for them.

    Nothing is written unless all rules compile, and could act somewhere. Raises PodmgrError.
    """
    maker = SpecMaker(settings, runner=runner)
    specs = []
    for rule in rules:
        choice = chosen_hook(rule, is_shared=False)
        specs.append(
            maker.spec(
                rule, counts_loopback=False, hook=choice[0] if choice else None, is_matched=any(rule.match)
            )
        )
    compiled = [compile_spec(spec, runner=runner, max_map_bytes=settings.max_map_bytes) for spec in specs]
    for spec, item in zip(specs, compiled, strict=True):
        require_possible(spec.rules[0], Hook(item.info.hook))
    results = []
    for spec, item in zip(specs, compiled, strict=True):
        path = None
        if output_dir is not None:
            path = output_dir / f"{spec.source.name}-{spec.direction}-{spec.digest}.bpf.o"
            try:
                output_dir.mkdir(parents=True, exist_ok=True)
                path.write_bytes(item.content)
            except OSError as error:
                raise failed(f"write {path}", error, tip="see --output-dir") from error
        results.append(Result(spec, item, path))
    return results


def as_text(results: Sequence[Result], *, explain: bool) -> str:
    """The paths that were written, or what each rule means."""
    if not explain:
        return "".join(f"{result.path}\n" for result in results)
    blocks = []
    for result in results:
        rows = _rows(result)
        width = max(len(label) for label, _ in rows)
        lines = [f"  {label.ljust(width)}   {text}" for label, text in rows]
        blocks.append("\n".join([str(result.rule), *lines]))
    return "\n\n".join(blocks) + "\n"


def as_document(results: Sequence[Result]) -> dict[str, Any]:
    """The same for -o json and -o yaml."""
    return {
        "version": 1,
        "objects": [
            {
                "rule": str(result.rule),
                "digest": result.spec.digest,
                "path": str(result.path) if result.path else None,
                "hook": result.compiled.info.hook,
                "section": result.compiled.info.section,
                "instructions": result.compiled.info.instructions,
                "licence": result.compiled.info.licence,
                "maps": {item.name: item.size_bytes for item in result.compiled.info.maps},
                "explanation": dict(_rows(result)),
            }
            for result in results
        ],
    }


def _rows(result: Result) -> list[tuple[str, str]]:
    info = result.compiled.info
    choice = chosen_hook(result.rule, is_shared=False)
    why = choice[1] if choice else "the program's section says so"
    maps = ", ".join(f"{item.name} ({item.size_bytes:,} bytes)" for item in info.maps)
    rows = [
        *result.rule.explain(),
        *result.rule.explain_options(),
        ("hook", f"{info.hook}, section {info.section}"),
        ("why there", why),
        ("program", f"{info.function}, {info.instructions} instructions, licence {info.licence}"),
        ("maps", maps or "none"),
        ("digest", result.spec.digest),
    ]
    if of := result.rule.of_profile:
        rows.append(("profile", f"{of}; podmgr profiles {of} says where its figures are from"))
    rows += [("note", line) for line in result.rule.caveats(Hook(info.hook))]
    if result.path is not None:
        rows.append(("written", str(result.path)))
    return rows
