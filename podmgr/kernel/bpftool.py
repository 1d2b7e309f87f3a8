"""bpftool: loading, attaching, detaching, many commands in one process.

A batch stops at its first error and may end with code 255 though all went well, so each
command is judged by its own output, and the rest of the batch is sent again. Whether a program
is attached is read back by the caller; this module only reports what bpftool said.

Apart from `reconcile.actuator`, which alone uses it: it knows bpftool's words, and nothing of rows.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from podmgr.errors import PodmgrError
from podmgr.proc import Runner, each
from podmgr.rules.rule import Direction, Hook

# Words that a batch file would split or take for a comment never get into one.
_BATCH_WORD = re.compile(r"[A-Za-z0-9_./:@%+,=-]+", re.ASCII)

_LEAST_SHARE = 16  # commands that a further process is worth

Command = tuple[str, ...]


class Failure(NamedTuple):
    """What bpftool says of a command that failed, and libbpf's lines, which hold the verifier's."""

    error: str
    log: str


def load(object_path: str, pin: str, maps_dir: str, hook: str, direction: Direction) -> Command:
    """Load the object's program and pin it, with its maps below `maps_dir`.

    The type is said, since versions differ in what they know of sections: not all that libbpf knows
    today, and `cgroup/skb` without the direction that some verdicts need.
    """
    kind = "classifier" if hook == Hook.TC else f"cgroup_skb/{direction}"
    return ("prog", "load", object_path, pin, "type", kind, "pinmaps", maps_dir)


def set_scope(pin: str, cgroup_id: int, level: int) -> Command:
    """Write a pinned `struct podmgr_scope`, two numbers of 64 bits."""
    value = [str(byte) for byte in struct.pack("=QQ", cgroup_id, level)]
    return ("map", "update", "pinned", pin, "key", "0", "0", "0", "0", "value", *value)


def attach(cgroup: str, direction: Direction, pin: str) -> Command:
    """Attach a pinned program beside those that are there (`multi`)."""
    return ("cgroup", "attach", cgroup, direction.value, "pinned", pin, "multi")


def detach(cgroup: str, direction: Direction, program: str | int) -> Command:
    """Detach one program, given by its pin, or by its id where the pin is lost."""
    handle = ("id", str(program)) if isinstance(program, int) else ("pinned", program)
    return ("cgroup", "detach", cgroup, direction.value, *handle)


def batch(
    commands: Sequence[Command], *, runner: Runner, pass_fds: Sequence[int] = ()
) -> list[Failure | None]:
    """Run all commands, in order; one that fails stops no other. None stands for success.

    Words must be plain: hand odd paths over as open descriptors (`/proc/self/fd/N`) named in
    `pass_fds`. Raises PodmgrError if bpftool cannot run or answers nothing.
    """
    results: list[Failure | None] = []
    while len(results) < len(commands):
        answers = _send(commands[len(results) :], runner, pass_fds)
        if not answers:
            raise PodmgrError("bpftool did not answer", tip="podmgr doctor")
        results.extend(answers)
    return results


def batches(
    commands: Sequence[Command], *, runner: Runner, pass_fds: Sequence[int] = ()
) -> list[Failure | None]:
    """The same in several processes at once, for what takes a CPU's time: loading. In no order."""
    share = max(_LEAST_SHARE, -(-len(commands) // (os.cpu_count() or 1)))
    parts = [commands[start : start + share] for start in range(0, len(commands), share)]
    done = each(lambda part: batch(part, runner=runner, pass_fds=pass_fds), parts)
    return [result for results in done for result in results]


def _send(commands: Sequence[Command], runner: Runner, pass_fds: Sequence[int]) -> list[Failure | None]:
    for command in commands:
        for word in command:
            if not _BATCH_WORD.fullmatch(word):
                raise PodmgrError(f"{word!r} cannot be given to bpftool", tip="use a plain path")
    lines = "".join(" ".join(command) + "\n" for command in commands)
    done = runner(["bpftool", "-j", "batch", "file", "-"], stdin=lines.encode(), pass_fds=pass_fds)
    try:
        entries: list[dict[str, Any]] = json.loads(done.stdout)
        # An entry without a command is about the batch itself: a stale errno, after all went well.
        outputs = [entry["output"] for entry in entries if "command" in entry]
    except (ValueError, KeyError, TypeError) as error:
        raise PodmgrError(
            "bpftool answered what is not JSON",
            detail=(done.stderr or done.stdout)[-2000:],
            tip="podmgr doctor shows whether bpftool works with this kernel",
        ) from error
    return [
        Failure(str(output["error"]), done.stderr) if isinstance(output, dict) and "error" in output else None
        for output in outputs[: len(commands)]
    ]
