"""The archive of `make krew` runs with a bare Python, and its manifest is one that krew takes.

What krew asks of a manifest: internal/index/validation/validate.go and pkg/index/types.go of
kubernetes-sigs/krew, and https://krew.sigs.k8s.io/docs/developer-guide/plugin-manifest.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from podmgr import __version__
from tests.kube import objects
from tests.kube.apiserver import ApiServer

ROOT = Path(__file__).parents[2]
ENTRY = ROOT / ".ci/krew/kubectl-podmgr"
FIELDS = {"version", "shortDescription", "description", "caveats", "homepage", "platforms"}
OF_PLATFORM = {"uri", "sha256", "selector", "files", "license", "bin"}
SEMVER = r"v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?"

OURS = 'up = "3 mbps"\nround-trip = "20ms"\nsource = "us"\nkind = "judged"\n'

Obj = dict[str, Any]
Plugin = Callable[..., subprocess.CompletedProcess[str]]


def make(folder: Path) -> tuple[Path, str]:
    """The archive and the text of the manifest."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, ROOT / ".ci/make-krew", folder], check=True, env=environment)
    return folder / "kubectl-podmgr.tar.gz", (folder / "podmgr.yaml").read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return make(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(made: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The link that krew makes to what it has unpacked."""
    store = tmp_path_factory.mktemp("krew") / "store"
    with tarfile.open(made[0]) as tar:
        tar.extractall(store, filter="data")
    link = store.parent / "bin" / "kubectl-podmgr"
    link.parent.mkdir()
    link.symlink_to(store / yaml.safe_load(made[1])["spec"]["platforms"][0]["bin"])
    return link


@pytest.fixture
def plugin(installed: Path, tmp_path: Path) -> Iterator[tuple[Plugin, ApiServer]]:
    """Runs what is installed by a Python without any library, and without our checkout."""
    with ApiServer() as server:
        server.create(objects.namespace("shop"))
        server.create(objects.pod("web-0", "shop"))
        kubeconfig = server.write_kubeconfig(tmp_path / "kubeconfig", namespace="shop")

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-I", "-S", installed, *words],
                capture_output=True,
                text=True,
                check=False,
                cwd=tmp_path,
                env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KUBECONFIG": str(kubeconfig)},
            )

        yield run, server


# The manifest


def why_krew_refuses(name: str, plugin: Obj) -> list[str]:
    """What krew says of a manifest; nothing of one that it takes."""
    spec = plugin.get("spec") or {}
    short = spec.get("shortDescription") or ""
    wrong = {
        "apiVersion": plugin.get("apiVersion") != "krew.googlecontainertools.github.com/v1alpha2",
        "kind": plugin.get("kind") != "Plugin",
        "name": not re.fullmatch(r"[\w-]+", name) or plugin.get("metadata", {}).get("name") != name,
        "shortDescription": not short or "\n" in short,
        "description": not spec.get("description"),
        "version": not re.fullmatch(SEMVER, spec.get("version") or ""),
        "platforms": not spec.get("platforms"),
        "unknown": bool(spec.keys() - FIELDS),
    }
    for platform in spec.get("platforms") or ():
        selector = platform.get("selector") or {}
        keys = {*selector.get("matchLabels", {}), *(e["key"] for e in selector.get("matchExpressions", ()))}
        files = platform.get("files")
        wrong |= {
            "unknown of a platform": bool(platform.keys() - OF_PLATFORM),
            "uri": not platform.get("uri"),
            "sha256": not re.fullmatch("[a-f0-9]{64}", platform.get("sha256") or ""),
            "bin": not platform.get("bin"),
            "selector": not keys or bool(keys - {"os", "arch"}),
            "files": files is not None and not (files and all(f.get("from") and f.get("to") for f in files)),
        }
    return [what for what, is_wrong in wrong.items() if is_wrong]


def test_krew_takes_the_manifest(made: tuple[Path, str]) -> None:
    archive, text = made
    plugin = yaml.safe_load(text)
    assert why_krew_refuses("podmgr", plugin) == []
    assert plugin["spec"]["version"] == f"v{__version__}"
    (platform,) = plugin["spec"]["platforms"]
    assert platform["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert platform["uri"].endswith(f"/v{__version__}/{archive.name}")
    with tarfile.open(archive) as tar:
        assert tar.getmember(platform["bin"]).mode & 0o111
        assert "LICENSE" in tar.getnames()


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("kind: Plugin", "kind: Plugins", "kind"),
        ("version: v", "version: ", "version"),
        ("key: os", "key: system", "selector"),
        ("sha256: ", "sha256: x", "sha256"),
        ("bin: ", "binary: ", "bin"),
        ("name: podmgr", "name: pod.mgr", "name"),
    ],
)
def test_a_slip_is_noticed(made: tuple[Path, str], old: str, new: str, what: str) -> None:
    assert old in made[1]
    assert what in why_krew_refuses("podmgr", yaml.safe_load(made[1].replace(old, new)))


def test_the_template_has_the_words_of_the_release_bot_and_they_are_all_replaced(
    made: tuple[Path, str],
) -> None:
    template = (ROOT / ".krew.yaml").read_text()
    assert re.search(
        r'^      \{\{addURIAndSha "https://\S+" \.TagName }}$',
        re.sub(r"\{\{ \.TagName }}", "v1", template),
        re.M,
    )
    assert "{{" not in made[1]


# The archive


def test_the_same_sources_make_the_same_archive(made: tuple[Path, str], tmp_path: Path) -> None:
    assert make(tmp_path)[0].read_bytes() == made[0].read_bytes()


def test_what_knows_the_kernel_is_not_in_it_and_licences_are(made: tuple[Path, str]) -> None:
    with tarfile.open(made[0]) as tar:
        names = tar.getnames()
    wings = {name.split("/")[2] for name in names if name.startswith("lib/podmgr/") and name.count("/") > 2}
    assert wings == {"cli", "cluster", "programs", "rules", "targets"}
    assert not [name for name in names if re.search("clang|bpftool|/elf", name)]
    assert not [name for name in names if name.endswith((".so", ".pyc")) or ".." in name]
    for library in ("annotated_doc", "pyyaml", "shellingham", "typer", "urllib3"):
        assert any(re.match(rf"lib/{library}-.*LICENSE", name, re.IGNORECASE) for name in names), library


def test_it_annotates_and_shows_with_a_bare_python(plugin: tuple[Plugin, ApiServer]) -> None:
    run, server = plugin
    done = run("annotate", "pod/web-0", "delay=80ms rtt", "--for", "10m")
    assert (done.returncode, done.stderr) == (0, "")
    pod = server.get("pods", "shop", "web-0")
    assert pod["metadata"]["annotations"]["podmgr.io/delay"] == "80ms rtt for=10m"
    for form in ("table", "yaml"):
        done = run("get", "-o", form)
        assert (done.returncode, done.stderr) == (0, "")
        assert "delay=40ms egress for=10m" in done.stdout
    assert "unknown unit" in run("annotate", "pod/web-0", "delay=80mz rtt").stderr


def test_it_knows_profiles_also_of_ones_own(plugin: tuple[Plugin, ApiServer], tmp_path: Path) -> None:
    run, _ = plugin
    assert run("profiles").stdout.startswith("NAME")
    assert "stands for" in run("profiles", "lte").stdout
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/ours.toml").write_text(OURS)
    ours = ("--program-dir", str(tmp_path / "profiles"))
    assert "ours" in run("profiles", "ours", *ours).stdout
    assert run("annotate", "pod/web-0", "profile=ours").returncode == 2
    done = run("annotate", "pod/web-0", "profile=ours", "--for", "10m", *ours)
    assert (done.returncode, done.stderr) == (0, "")
    assert "for=10m" in run("get", *ours).stdout
    (row,) = run("get").stdout.splitlines()[1:]
    assert "unknown" in row


def test_an_old_python_is_told_so_or_another_is_found(tmp_path: Path) -> None:
    ast.parse(ENTRY.read_text(), feature_version=(3, 4))
    code = f"import sys; sys.version_info = (3, 9, 6); __file__ = {str(ENTRY)!r}; exec(open(__file__).read())"
    argv, path = [sys.executable, "-I", "-c", code], tmp_path / "bin"
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={"PATH": str(path)})
    assert (done.returncode, done.stderr) == (
        1,
        "error: kubectl podmgr needs Python 3.11 or later; this is 3.9\n",
    )
    path.mkdir()
    (path / "python3.12").write_text("#!/bin/sh\necho $1\n")
    (path / "python3.12").chmod(0o755)
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={"PATH": str(path)})
    assert done.stdout == f"{ENTRY}\n"
