"""`podmgr profiles`: networks by name, their figures, where these are from, and the rules that they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from podmgr.cli.options import Output, ProgramDir, settings_of
from podmgr.cli.render import Format, columns, document, say
from podmgr.errors import EXIT_DONE, printable
from podmgr.settings import DEFAULT_PROGRAM_DIR

if TYPE_CHECKING:  # --help shall load no kinds
    from podmgr.rules.profiles import Profile

_NONE = "-"


def command(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only this one, with the rules that it stands for.")
    ] = None,
    output: Output = Format.TABLE,
    program_dir: ProgramDir = DEFAULT_PROGRAM_DIR,
) -> int:
    """Show the profiles: networks by name, with their figures and where these are from.

    'podmgr.io/profile: lte' on a pod, or --rule profile=lte, is the rules that 'podmgr profiles lte' lists;
    a rule that is written beside it beats what it has of that kind and direction. A profile of your own is
    NAME.toml in the program folder.
    """
    from podmgr.programs.profiles import all_profiles, find_profile

    settings = settings_of(context, program_dir=program_dir)
    if name is not None:
        found = [find_profile(name.lower(), settings)]
    else:
        known, wrong = all_profiles(settings)
        found = list(known.values())
        for error in wrong:
            say(f"warning: {error.message}")
    if output in (Format.JSON, Format.YAML):
        print(document(as_document(found), output), end="")
    elif name is not None:
        print(as_text(found[0]), end="")
    else:
        print(as_table(found, wide=output is Format.WIDE), end="")
    return EXIT_DONE


def as_table(profiles: Iterable[Profile], *, wide: bool) -> str:
    """A line for each."""
    heading = ["NAME", "DOWN", "UP", "RTT", "JITTER", "LOSS", "KIND", "SOURCE"]
    rows = [heading + ["NOTE"] * wide]
    for profile in profiles:
        cells = [profile.name, *_figures(profile).values(), profile.kind.value, profile.source]
        rows.append([printable(cell) for cell in cells + [profile.note or _NONE] * wide])
    return columns(rows)


def as_text(profile: Profile) -> str:
    """One, with its rules, and how to have them explained."""
    rows = [*_figures(profile).items(), ("kind", profile.kind.value), ("source", profile.source)]
    rows += [("note", profile.note)] if profile.note else []
    width = max(len(label) for label, _ in rows)
    lines = [profile.name, *(f"  {label.ljust(width)}   {text}" for label, text in rows), "", "stands for"]
    lines += [f"  {rule}" for rule in profile.rules]
    lines += ["", f"podmgr compile --explain profile={profile.name} says what each of them means in numbers"]
    return "".join(f"{printable(line)}\n" for line in lines)


def as_document(profiles: Iterable[Profile]) -> dict[str, Any]:
    """The same for -o json and -o yaml."""
    return {"version": 1, "profiles": [_item(profile) for profile in profiles]}


def _item(profile: Profile) -> dict[str, Any]:
    from podmgr.rules.rule import Direction

    run = profile.run_packets
    return {
        "name": profile.name,
        "down_bits_per_second": profile.rate_bits_per_second(Direction.INGRESS),
        "up_bits_per_second": profile.rate_bits_per_second(Direction.EGRESS),
        "round_trip_seconds": profile.round_trip_ns / 1e9,
        "jitter_seconds": profile.jitter_ns / 1e9,
        "loss_percent": float(profile.loss_percent),
        "run_packets": None if run is None else float(run),
        "kind": profile.kind.value,
        "source": profile.source,
        "note": profile.note,
        "rules": [str(rule) for rule in profile.rules],
    }


def _figures(profile: Profile) -> dict[str, str]:
    from podmgr.rules.rule import Direction
    from podmgr.rules.units import format_number, format_rate, format_time

    down, up = (profile.rate_bits_per_second(way) for way in (Direction.INGRESS, Direction.EGRESS))
    loss = f"{format_number(profile.loss_percent)}%" if profile.loss_percent else _NONE
    run = profile.run_packets
    return {
        "down": format_rate(down) if down else _NONE,
        "up": format_rate(up) if up else _NONE,
        "round trip": format_time(profile.round_trip_ns) if profile.round_trip_ns else _NONE,
        "jitter": f"±{format_time(profile.jitter_ns)}" if profile.jitter_ns else _NONE,
        "loss": loss if run is None else f"{loss} in runs of {format_number(run)}",
    }
