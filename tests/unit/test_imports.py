"""The house: imports go down only, one module starts processes, and the ground floor does no I/O."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import podmgr

# From the ground up. A module imports from lower layers only, and nothing from its own.
LAYERS = [
    {"errors", "units", "intervals", "backoff", "settings", "mounts"},
    {"rules"},
    {"grammar"},
    {"annotations", "catalog", "csource", "documents", "plan"},
    {"cluster", "spec"},
    {"proc", "refusals"},
    {"cgroups"},
    # The edges: each owns one outside thing.
    {"bpf_syscall", "bpftool", "clang", "elf", "ledger", "manifests", "objects", "pins"}
    | {"probe", "vetting", "vmlinux", "kubeconfig", "journal", "systemd", "netlink"},
    {"kube", "verdicts"},
    {"announcer", "informer", "workloads", "workqueue", "programs", "scratch", "tc"},
    {"netns", "build"},
    {"actual", "network", "others", "qdiscs", "throwaway"},
    {"filters"},
    {"actuator"},
    {"desired"},
    {"reconcile"},
    {"compiling", "metrics", "podsync", "render", "targets"},
    {"doctor", "live", "running", "selecting", "wishes"},
    {"clusterwishes", "demo", "watch"},
    {"cli"},
    {"__main__"},
]
GROUND = [
    "errors",
    "units",
    "intervals",
    "rules",
    "grammar",
    "annotations",
    "catalog",
    "documents",
    "plan",
    "cluster",
    "spec",
    "settings",
]
OUTSIDE = {"asyncio", "ctypes", "fcntl", "io", "os", "pathlib", "select", "shutil", "signal", "socket"} | {
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
}
STARTERS = ("exec", "fork", "popen", "posix_spawn", "spawn", "system")

FILES = {path.stem: path for path in Path(podmgr.__file__).parent.glob("*.py") if path.stem != "__init__"}


def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text())


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes, also inside functions, but for what only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            children: list[ast.stmt] = child.orelse
            for other in children:
                yield other
                yield from nodes(other)
            continue
        yield child
        yield from nodes(child)


def imported(source: ast.AST) -> set[str]:
    """Dotted names of what is imported: `a.b` for `import a.b`, `a` and `a.b` for `from a import b`."""
    found: set[str] = set()
    for node in nodes(source):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "podmgr" if node.level else node.module or ""
            base += f".{node.module}" if node.level and node.module else ""
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def own(names: set[str]) -> set[str]:
    """The modules of podmgr among imported names."""
    parts = {name.split(".")[1] for name in names if name.startswith("podmgr.")}
    return parts & FILES.keys()


def floor(module: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if module in layer)


def calls(source: ast.AST) -> set[str]:
    """What is called, as it is written: `subprocess.run`, `open`."""
    return {ast.unparse(node.func) for node in nodes(source) if isinstance(node, ast.Call)}


def starts_processes(name: str) -> bool:
    module, _, function = name.rpartition(".")
    return module in ("subprocess", "multiprocessing", "pty") or (
        module == "os" and function.startswith(STARTERS)
    )


def test_every_module_is_in_one_layer() -> None:
    listed = [module for layer in LAYERS for module in layer]
    assert sorted(listed) == sorted(FILES)


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_go_down_only(module: str) -> None:
    too_high = {name for name in own(imported(tree(module))) if floor(name) >= floor(module)}
    assert not too_high


@pytest.mark.parametrize("module", sorted(FILES.keys() - {"proc"}))
def test_only_proc_starts_processes(module: str) -> None:
    source = tree(module)
    assert not {name for name in calls(source) if starts_processes(name)}
    names = imported(source)
    assert not {name for name in names if name.startswith(("subprocess.", "multiprocessing", "pty"))}
    assert not {name for name in names if name.startswith("os.") and starts_processes(name)}


def test_proc_starts_processes() -> None:
    """The check above can see: in the one module that may, it finds what starts a process."""
    assert {name for name in calls(tree("proc")) if starts_processes(name)} == {"subprocess.Popen"}


@pytest.mark.parametrize("module", GROUND)
def test_ground_floor_does_no_io(module: str) -> None:
    source = tree(module)
    allowed = {"pathlib"} if module == "settings" else set()
    assert not {name.split(".")[0] for name in imported(source)} & OUTSIDE - allowed
    assert not {"open", "print", "input"} & calls(source)


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("from podmgr import cgroups, __version__", {"cgroups"}),
        ("from podmgr.rules import Rule", {"rules"}),
        ("import podmgr.tc", {"tc"}),
        ("from . import cli", {"cli"}),
        ("from .plan import Plan", {"plan"}),
        ("def late():\n    from podmgr import live", {"live"}),
        ("if TYPE_CHECKING:\n    from podmgr import cli\nelse:\n    from podmgr import tc", {"tc"}),
        ("import os", set()),
    ],
)
def test_the_reader_of_imports_sees_them_all(source: str, modules: set[str]) -> None:
    assert own(imported(ast.parse(source))) == modules
