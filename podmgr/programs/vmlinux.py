"""vmlinux.h: the types of the running kernel as a C header, made of its BTF.

Apart from `build`, which alone uses it: one outside thing, which most programs do without.
"""

from __future__ import annotations

from podmgr.errors import PodmgrError
from podmgr.proc import Runner

_BTF = "/sys/kernel/btf/vmlinux"


def header(*, runner: Runner) -> bytes:
    """The header, of some 3 MB, in half a second. Raises PodmgrError if the kernel has no BTF."""
    done = runner(["bpftool", "btf", "dump", "file", _BTF, "format", "c"])
    if not done.succeeded or b"__VMLINUX_H__" not in done.output[:200]:
        raise PodmgrError(
            f"vmlinux.h cannot be made: {_BTF} of this kernel cannot be read",
            detail=done.stderr.strip()[:200] or None,
            tip="put a vmlinux.h beside the program, or include <linux/bpf.h> and its like instead",
        )
    return done.output
