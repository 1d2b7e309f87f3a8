"""Finding a profile by its name: podmgr's own, then NAME.toml of the program folder, if it can be trusted.

Who may annotate pods names profiles; only root (or, for a folder named on the command line, the invoking
user) may have written them, as it is with programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from podmgr.errors import PodmgrError
from podmgr.programs import vetting
from podmgr.rules.profiles import Profile, built_in, read, unknown
from podmgr.rules.programs import is_program_name
from podmgr.rules.rule import Rule
from podmgr.rules.words import Profiles
from podmgr.settings import Settings

_SUFFIX = ".toml"
_MOST_BYTES = 64 << 10


def find_profile(name: str, settings: Settings) -> Profile:
    """The profile of that name, in small letters.

    Raises PodmgrError if there is none, if one hides podmgr's own, if others could have written it, or if
    it is malformed.
    """
    path = settings.program_dir / f"{name}{_SUFFIX}"
    if name in built_in():
        if path.exists():
            raise PodmgrError(f"{path} hides podmgr's own profile {name}", tip="give it another name")
        return built_in()[name]
    found = _own(path, settings)
    if found is None:
        known = [*built_in(), *_names(settings)]
        raise unknown(name, known, where=f"; a profile of your own would be {path}")
    return found


def finder(settings: Settings) -> Profiles:
    """What says of a name what it stands for: for the grammar, which opens no file."""

    def rules(name: str) -> tuple[Rule, ...]:
        return find_profile(name, settings).rules

    return rules


def all_profiles(settings: Settings) -> tuple[Mapping[str, Profile], list[PodmgrError]]:
    """podmgr's own and those of the program folder, and what is wrong with others that are there."""
    found = dict(built_in())
    wrong: list[PodmgrError] = []
    for name in _names(settings):
        try:
            found[name] = find_profile(name, settings)
        except PodmgrError as error:
            wrong.append(error)
    return found, wrong


def _own(path: Path, settings: Settings) -> Profile | None:
    try:
        content = vetting.read(path, vetting.trusted_users(settings), most_bytes=_MOST_BYTES)
        return None if content is None else read(path.stem, content, source=str(path))
    except PodmgrError as error:
        message = error.message if str(path) in error.message else f"{path}: {error.message}"
        raise type(error)(f"profile {path.stem}: {message}", tip=error.tip) from error


def _names(settings: Settings) -> list[str]:
    """The names of the folder's files that a rule could name."""
    try:
        files = sorted(settings.program_dir.iterdir())
    except OSError:
        return []
    names = [path.stem for path in files if path.suffix == _SUFFIX]
    return [name for name in names if is_program_name(name) and name == name.lower()]
