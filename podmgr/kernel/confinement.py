"""What holds this process back besides its capabilities: the AppArmor profile of its container."""

from __future__ import annotations

from pathlib import Path

from podmgr.errors import printable

_PROFILE = Path("/proc/self/attr/apparmor/current")
ADVICE = "unconfined in the manifest: components: [apparmor-field] in k3s/kustomization.yaml"


def apparmor_profile() -> str:
    """The profile that this process is held to; "" for none, and for one that only complains."""
    try:
        found = _PROFILE.read_text(errors="replace").strip("\n\0 ")
    except OSError:  # no AppArmor, or it is off
        return ""
    name, _, mode = found.rpartition(" (")
    return printable(name)[:80] if mode in ("enforce)", "kill)") else ""


def says(profile: str) -> str:
    """What a profile means for podmgr."""
    return (
        f"AppArmor's profile {profile} may keep podmgr from processes of others, and so from pods' interfaces"
    )
