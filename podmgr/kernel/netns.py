"""Network namespaces: whose processes live in which, and descriptors to enter them by.

A namespace is known by its inode number and entered through a descriptor only: opened from a
process, after which it is checked that the process still is in the cgroup that it was found in.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from podmgr.attachment import Cgroup
from podmgr.errors import PermissionDeniedError, PodmgrError
from podmgr.kernel import cgroup_life, mounts, netlink
from podmgr.kernel.netlink import RefusedError, RouteSocket
from podmgr.kernel.tc import TrafficControl

_START_TIME = 19  # field 22 of /proc/PID/stat, counted from behind the command's name

MOST_NAMESPACES = 64  # of one cgroup
_MOST_ROUTES = 256  # sockets at a time, beside the namespaces: a process may open 1,024 files
_CAP_SYS_ADMIN = 21

_NS_GET_USERNS = 0xB701
_NS_GET_NSTYPE, _CLONE_NEWNET = 0xB703, 0x4000_0000
_OUR_USERS = os.stat("/proc/self/ns/user").st_ino

# linux/rtnetlink.h, linux/net_namespace.h
_RTM_GETNSID = 90
_NETNSA_NSID, _NETNSA_FD = 1, 3


class Namespaces:
    """The namespaces that were looked at, each opened once, and closed when the block ends."""

    def __init__(self) -> None:
        self._fds: dict[int, int] = {}
        self._routes: dict[int, RouteSocket] = {}
        self._pids: dict[int, int] | None = None
        self._named: dict[int, Path] = {}

    def __enter__(self) -> Namespaces:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._routes:
            self._routes.popitem()[1].close()
        while self._fds:
            os.close(self._fds.popitem()[1])

    def of(self, cgroup: Cgroup, *, most: int = MOST_NAMESPACES) -> list[int]:
        """The namespaces of the cgroup's processes, that of the oldest process first.

        At most so many: who lives in a cgroup may make as many as it likes.
        Raises PermissionDeniedError if a process's may not be looked at.
        """
        pids: dict[int, list[int]] = {}
        for pid in cgroup_life.processes(cgroup):
            inode = _looked_at(pid)
            if inode is not None:
                pids.setdefault(inode, []).append(pid)
        if not pids and cgroup.id in self._named:
            return self._by_name(self._named[cgroup.id])
        if pids and not _may_enter():
            raise _not_allowed(min(map(min, pids.values())))
        inodes = list(pids)
        if len(inodes) > 1:
            inodes.sort(key=lambda inode: min(map(_started, pids[inode])))
        before = set(self._fds)
        for inode in inodes[:MOST_NAMESPACES]:
            self._open_one_of(inode, pids[inode])
        living = set(cgroup_life.processes(cgroup)) if pids else set()
        found = [inode for inode in inodes if inode in self._fds and not living.isdisjoint(pids[inode])]
        # Anybody may make a namespace within a user namespace of his own: such a one comes last.
        found.sort(key=lambda inode: _owner_of(self._fds[inode]) != _OUR_USERS)
        for inode in self._fds.keys() - before - set(found[:most]):
            os.close(self._fds.pop(inode))
        return found[:most]

    def knowing(self, named: Mapping[int, Path]) -> Namespaces:
        """Cgroups, by their id, whose network has a name: it is theirs as long as they have no process."""
        self._named |= named
        return self

    def _by_name(self, path: Path) -> list[int]:
        """The namespace of this name on the node, where we may be in another mount namespace."""
        for seen in (path, Path(f"/proc/1/root{path}")):
            with suppress(PermissionError):
                if (inode := self._open_path(seen)) is not None and _is_network(self._fds[inode]):
                    return [inode]
        return []

    def own(self) -> int:
        """The namespace that podmgr runs in."""
        return self._open_path(Path("/proc/self/ns/net")) or 0

    def nodes(self) -> list[int]:
        """The namespaces that a node's side of a veth may be in: podmgr's own, and that of process 1."""
        with suppress(PermissionDeniedError):
            self._open(1)
        ones = _inode_of(1)
        return list(dict.fromkeys([self.own(), *([ones] if ones in self._fds else [])]))

    def is_ours(self, inode: int) -> bool:
        """Whether it is podmgr's own or that of process 1, and so no pod's."""
        return inode in (self.own(), _inode_of(1))

    def is_shared(self, inode: int, cgroup: Cgroup) -> bool:
        """Whether a process outside the cgroup lives in that namespace too."""
        within = set(cgroup_life.processes(cgroup))
        return any(_inode_of(pid) == inode for pid in _all_pids() if pid not in within)

    def descriptor(self, inode: int, near: Cgroup | None = None) -> int | None:
        """A descriptor of the namespace; None if neither a process nor a mount holds it any more.

        It is looked for among the processes of the cgroup `near` first. Raises
        PermissionDeniedError if those may not be looked at.
        """
        if inode in self._fds:
            return self._fds[inode]
        if near is not None:
            self.of(near)
        if inode not in self._fds:
            self.own()
        if inode not in self._fds:
            self._search(inode)
        return self._fds.get(inode)

    def traffic_control(self, inode: int, near: Cgroup | None = None) -> TrafficControl | None:
        """The namespace's interfaces, qdiscs and filters, in reach until the block ends.

        None if it is gone. Raises as `descriptor` does, PermissionDeniedError if it may not be entered.
        """
        if inode not in self._routes:
            fd = self.descriptor(inode, near)
            if fd is None:
                return None
            if len(self._routes) == _MOST_ROUTES:  # the oldest is opened again, should it be asked for
                self._routes.pop(next(iter(self._routes))).close()
            self._routes[inode] = netlink.opened(fd)
        return TrafficControl(self._routes[inode])

    def all(self) -> list[int]:
        """Every namespace that a process or a mount holds."""
        for pid in _all_pids():
            with suppress(PermissionDeniedError):
                self._open(pid)
        for path in _mounted():
            self._open_path(path)
        return list(self._fds)

    def id_of(self, inode: int, viewer: int) -> int | None:
        """The number by which interfaces of the namespace `viewer` name that one (`link_netnsid`)."""
        fd, viewer_fd = self.descriptor(inode), self.descriptor(viewer)
        return None if fd is None or viewer_fd is None else _namespace_id(fd, viewer_fd)

    def _search(self, inode: int) -> None:
        if self._pids is None:  # one look at all processes serves for all that are asked for
            self._pids = {found: pid for pid in _all_pids() if (found := _inode_of(pid)) is not None}
        if inode in self._pids:
            with suppress(PermissionDeniedError):
                self._open(self._pids[inode])
        for path in _mounted():
            if inode in self._fds:
                break
            with suppress(OSError):
                if path.stat().st_ino == inode:
                    self._open_path(path)

    def _open_one_of(self, inode: int, pids: Sequence[int]) -> None:
        """Open the namespace through one of its processes; it stays unknown if all have left it."""
        next((pid for pid in pids if self._open(pid) == inode), None)

    def _open(self, pid: int) -> int | None:
        """The inode number of the process's namespace, now open; None if the process has ended."""
        inode = _looked_at(pid)
        return inode if inode in self._fds else self._open_path(Path(f"/proc/{pid}/ns/net"))

    def _open_path(self, path: Path) -> int | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:
            if path.parts[1] == "proc":
                raise
            return None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # not to be taken for "gone"
                raise PodmgrError(
                    f"cannot open the network namespace {path}: {error.strerror}", tip="ulimit -n 65536"
                ) from error
            return None
        inode = os.fstat(fd).st_ino
        if inode in self._fds:
            os.close(fd)
        else:
            self._fds[inode] = fd
        return inode


def _may_enter() -> bool:
    """Whether setns(2) is allowed us."""
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    return bool(effective >> _CAP_SYS_ADMIN & 1)


def _not_allowed(pid: int) -> PermissionDeniedError:
    return PermissionDeniedError(
        f"not allowed to look into the network of process {pid}",
        tip="it takes the capabilities SYS_PTRACE and SYS_ADMIN; hook=cgroup does without",
    )


def _owner_of(namespace_fd: int) -> int | None:
    """The inode number of the user namespace that a network namespace belongs to, ioctl_ns(2)."""
    try:
        fd = fcntl.ioctl(namespace_fd, _NS_GET_USERNS)
    except OSError:  # one that lies outside of ours
        return None
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def _is_network(fd: int) -> bool:
    """ioctl_ns(2)."""
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        return False


def _looked_at(pid: int) -> int | None:
    """The inode number of the process's namespace; None if it has ended. Raises PermissionDeniedError."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except PermissionError as error:
        raise _not_allowed(pid) from error
    except OSError:
        return None


def _inode_of(pid: int) -> int | None:
    """The same, of a process that may be anybody's: None also if it may not be looked at."""
    with suppress(PermissionDeniedError):
        return _looked_at(pid)
    return None


def _all_pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _mounted() -> list[Path]:
    """Namespaces that have a name, such as those of `ip netns` and of container runtimes."""
    return [mount.path for mount in mounts.table() if mount.filesystem == "nsfs"]


def _started(pid: int) -> int:
    """When the process was started, in clock ticks since boot."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[_START_TIME])
    except (OSError, IndexError, ValueError):
        return 2**63


def _namespace_id(fd: int, viewer_fd: int) -> int | None:
    """rtnetlink(7), RTM_GETNSID."""
    try:
        with netlink.opened(viewer_fd) as route:
            answer = route.ask(_RTM_GETNSID, bytes(4) + netlink.attribute(_NETNSA_FD, struct.pack("=i", fd)))
    except RefusedError:
        return None
    told = netlink.attributes(answer, 4).get(_NETNSA_NSID)  # behind struct rtgenmsg, padded
    number = -1 if told is None else int(struct.unpack("=i", told)[0])
    return number if number >= 0 else None
