"""One machine for one command: boot, run it in a copy of the checkout, bring back results and exit code.

The guest writes to four virtio ports: that it is up, what the command prints, a tar archive of /results,
the exit code.
Its kernel's messages go to a log that is shown when it comes to no end.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tests.vm import checkout
from tests.vm.errors import MachineError, MachineTimeoutError, require_tools
from tests.vm.image import CHECKOUT, Image, image

QEMU = "qemu-system-x86_64"
# All virtual processors read one counter of the emulator, so the kernel need not prove that it is steady.
KERNEL_ARGUMENTS = "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable"
# No newer one: the emulator copies memory four times slower where the guest trusts in fast `rep movsb`.
PROCESSOR = "Nehalem"
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": "/checkout",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "CI": "true",
}
BOOT_SECONDS = 120.0  # it takes 15
MOST_BOOTS = 3
KERNEL_VARIABLE = "PODMGR_VM_KERNEL"
"""In the guest: the kernel that was asked for. It tells tests where they are."""


@dataclass(frozen=True)
class Machine:
    """What a machine is like.

    `counts_instructions`: its clock is what it has computed, a nanosecond for each instruction, and leaps
    over idle time. Other work on the host then makes it slower, and changes nothing that it measures.
    """

    kernel: str
    cpus: int = 2
    memory_mib: int = 2048
    accelerator: str = "tcg"
    counts_instructions: bool = False


def qemu_argv(machine: Machine, files: Image, job: Path) -> list[str]:
    """The machine's command line. `job` holds job.tar; logs and answers are written beside it."""
    boot = ["-kernel", str(files.vmlinuz), "-initrd", str(files.initramfs), "-append", KERNEL_ARGUMENTS]
    size = ["-m", str(machine.memory_mib), "-smp", str(machine.cpus), "-cpu", PROCESSOR]
    clock = ["-icount", "shift=0,sleep=off"] if machine.counts_instructions else []
    bare = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    console = ["-chardev", f"file,id=console,path={job}/console.log", "-serial", "chardev:console"]
    disks = [*_disk(files.root, "snapshot=on"), *_disk(files.modules), *_disk(job / "job.tar")]
    ports = ["-device", "virtio-serial-pci", *_port("output", "stdio,signal=off")]
    ports += _port("booted", f"file,path={job}/booted")
    ports += [*_port("results", f"file,path={job}/results.tar"), *_port("status", f"file,path={job}/status")]
    return [QEMU, "-accel", machine.accelerator, *size, *clock, *bare, *boot, *console, *disks, *ports]


def _disk(path: Path, mode: str = "readonly=on") -> list[str]:
    return ["-drive", f"file={_escaped(path)},format=raw,if=virtio,{mode}"]


def _port(name: str, backend: str) -> list[str]:
    kind, _, options = backend.partition(",")
    device = f"virtserialport,chardev={name},name={name}"
    return ["-chardev", f"{kind},id={name},{options}", "-device", device]


def _escaped(path: Path) -> str:
    """qemu's own notation for a comma inside an option's value."""
    return str(path).replace(",", ",,")


def run(
    command: Sequence[str],
    machine: Machine,
    *,
    output: BinaryIO,
    timeout_seconds: float,
    results: Path | None = None,
) -> int:
    """Run `command` in a new machine; its exit code. What it writes into /results comes to `results`.

    Raises `MachineError` if the machine ends without an answer, `MachineTimeoutError` if it does not end.
    """
    require_tools((QEMU, "setpriv"))
    files = image(machine.kernel)
    environment = ENVIRONMENT | {KERNEL_VARIABLE: machine.kernel}
    with tempfile.TemporaryDirectory(prefix="podmgr-vm-") as name:
        job = Path(name)
        checkout.pack(CHECKOUT, command, environment, job / "job.tar")
        argv = qemu_argv(machine, files, job)
        for _ in range(MOST_BOOTS):
            if _run_to_its_end(argv, job, output, timeout_seconds):
                break
        else:
            message = f"the machine was not up after {BOOT_SECONDS:g} s, {MOST_BOOTS} times"
            raise MachineTimeoutError(message, tip="is the host too busy?", detail=_log(job))
        code = _status(job)
        if results is not None:
            with tarfile.open(job / "results.tar") as tar:
                tar.extractall(results, filter="data")
        return code


def _run_to_its_end(argv: Sequence[str], job: Path, output: BinaryIO, timeout_seconds: float) -> bool:
    """Whether the machine came up. An emulated one hangs at boot now and then, before it runs anything."""
    with (
        _started(argv, job) as process,
        _time_limit(process, timeout_seconds) as is_over,
        _time_limit(process, BOOT_SECONDS, unless=lambda: _is_up(job)),
    ):
        assert process.stdout is not None
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            output.write(piece)
            output.flush()
        process.wait()
    if is_over.is_set():
        message = f"the machine was still at work after {timeout_seconds:g} s"
        raise MachineTimeoutError(message, tip="--timeout SECONDS gives it more time", detail=_log(job))
    return _is_up(job)


def _is_up(job: Path) -> bool:
    return (job / "booted").exists() and (job / "booted").stat().st_size > 0


@contextmanager
def _started(argv: Sequence[str], job: Path) -> Iterator[subprocess.Popen[bytes]]:
    """qemu in a session of its own, so that Ctrl-C reaches only us; it never outlives us."""
    dying_with_us = ["setpriv", "--pdeathsig", "KILL", "--", *argv]
    with (job / "qemu.log").open("wb") as log:
        process = subprocess.Popen(
            dying_with_us,
            stdin=subprocess.PIPE,  # its end would close the port for output too
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def _time_limit(
    process: subprocess.Popen[bytes], seconds: float, *, unless: Callable[[], bool] = lambda: False
) -> Iterator[threading.Event]:
    is_over = threading.Event()

    def end() -> None:
        if unless():
            return
        is_over.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield is_over
    finally:
        timer.cancel()


def _status(job: Path) -> int:
    status = job / "status"
    if not status.exists() or not (said := status.read_text().strip()):
        raise MachineError("the machine ended without the command's exit code", detail=_log(job))
    return int(said)


def _log(job: Path) -> str:
    """The last words of qemu and of the guest's kernel."""
    lines = [
        line
        for name in ("qemu.log", "console.log")
        if (job / name).exists()
        for line in (job / name).read_text(errors="replace").splitlines()
    ]
    return "\n".join(lines[-30:])
