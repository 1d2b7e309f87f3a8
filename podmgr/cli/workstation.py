"""The options that the commands of `kubectl podmgr` share, and the connection that they make of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from podmgr.errors import UsageError, printable

if TYPE_CHECKING:  # --help shall start at once
    from podmgr.cluster.api import Api
    from podmgr.rules.words import Profiles

OwnProfiles = Annotated[
    Path,
    typer.Option(
        "--program-dir", envvar="PODMGR_PROGRAM_DIR", help="Profiles of your own, as the nodes have them."
    ),
]
RequestTimeout = Annotated[
    str,
    typer.Option(
        "--request-timeout",
        metavar="DURATION",
        help="As in kubectl: how long the server may take to answer, such as 5s; 0 is podmgr's own 30 s.",
    ),
]


def connect(kubeconfig: str | None, context: str | None, request_timeout: str) -> Api:
    """The API server that the options mean. Raises PodmgrError, and UsageError for what is no duration."""
    from podmgr.cluster.access import find_access
    from podmgr.cluster.api import READ_SECONDS, Api
    from podmgr.rules.units import parse_duration_seconds

    text = f"{request_timeout.strip()}s" if request_timeout.strip().isdecimal() else request_timeout.strip()
    try:
        seconds = READ_SECONDS if text in ("0s", "") else parse_duration_seconds(text)
    except ValueError as error:
        raise UsageError(f"--request-timeout: {printable(str(error))}", tip="such as 5s or 1m") from error
    return Api(find_access(kubeconfig, context), read_seconds=seconds)


def profiles(context: typer.Context, folder: Path) -> Profiles:
    """What says of a profile's name what it stands for, also of those in the folder."""
    from podmgr.cli.options import settings_of
    from podmgr.programs.profiles import finder

    return finder(settings_of(context, program_dir=folder))
