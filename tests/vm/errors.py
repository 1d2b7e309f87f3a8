"""What can go wrong around a virtual machine, with a tip where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterable

from podmgr.errors import PodmgrError


class MachineError(PodmgrError):
    """A machine or its image could not be had, or did not come to an end of its own."""


class MachineTimeoutError(MachineError):
    """The machine was still at work when its time was over."""


def require_tools(tools: Iterable[str]) -> None:
    """Raises `MachineError` that names every command which is not installed."""
    missing = sorted(tool for tool in tools if shutil.which(tool) is None)
    if missing:
        raise MachineError(f"virtual machines need {', '.join(missing)}", tip="sudo make tools-vm")


def report(error: MachineError) -> str:
    """What a person is told: details first, so that the error and what to do about it stand last."""
    tip = f"tip: {error.tip}" if error.tip else None
    return "\n".join(part for part in (error.detail, f"error: {error.message}", tip) if part)
