"""`podmgr profiles`, and profiles on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from podmgr.cli.options import parse_rules
from podmgr.errors import UsageError
from podmgr.rules.profiles import built_in
from podmgr.settings import Settings


def podmgr(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "podmgr", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


@pytest.fixture
def nothing(tmp_path: Path) -> Settings:
    return Settings(program_dir=tmp_path)


def shown(*texts: str, settings: Settings) -> list[str]:
    return [str(rule) for rule in parse_rules(list(texts), settings)]


def test_each_is_listed_with_its_figures_its_source_and_what_they_rest_on() -> None:
    lines = podmgr("profiles").stdout.splitlines()
    assert lines[0].split() == ["NAME", "DOWN", "UP", "RTT", "JITTER", "LOSS", "KIND", "SOURCE"]
    assert [line.split()[0] for line in lines[1:]] == list(built_in())
    assert all(profile.source in line for profile, line in zip(built_in().values(), lines[1:], strict=True))
    assert "2.4 kbps at the source" in podmgr("profiles", "-o", "wide").stdout


def test_one_is_shown_with_its_rules_and_how_to_have_them_explained() -> None:
    text = podmgr("profiles", "WIFI-weak").stdout
    assert "jitter       ±40ms\n" in text
    assert "loss         2% in runs of 5\n" in text
    assert "  delay=80ms ingress jitter=20ms\n" in text
    assert "podmgr compile --explain profile=wifi-weak" in text


def test_scripts_get_numbers() -> None:
    document = json.loads(podmgr("profiles", "hspa", "-o", "json").stdout)
    assert document["version"] == 1
    (found,) = document["profiles"]
    assert found["rules"][0] == "bandwidth=2 mbps egress algorithm=edt"
    del found["rules"]
    assert found == {
        "name": "hspa",
        "down_bits_per_second": 4_000_000,
        "up_bits_per_second": 2_000_000,
        "round_trip_seconds": 0.12,
        "jitter_seconds": 0.0,
        "loss_percent": 0.1,
        "run_packets": None,
        "kind": "judged",
        "source": "Firebase Test Lab, gcloud firebase test network-profiles list (HSPA)",
        "note": "",
    }
    assert "name: geo" in podmgr("profiles", "-o", "yaml").stdout


def test_one_that_there_is_not_is_an_error_with_a_guess() -> None:
    done = podmgr("profiles", "lt")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: there is no profile 'lt'\ntip: did you mean 'lte'?")


def test_it_loads_neither_a_compiler_nor_a_cluster() -> None:
    code = (
        "import sys\nfrom podmgr.cli.main import make_app\n"
        "make_app(['profiles'])(['profiles', 'lte'], standalone_mode=False)\n"
        "print([name for name in sys.modules if name.startswith(('elftools', 'urllib3', 'podmgr.cluster', "
        "'podmgr.kernel', 'podmgr.programs.build', 'podmgr.programs.find', 'podmgr.proc'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_rule_beside_a_profile_beats_its_part_wherever_it_stands(nothing: Settings) -> None:
    whole = shown("profile=lte", settings=nothing)
    own = "bandwidth=1 mbps egress"
    expected = [own, *(text for text in whole if not text.startswith("bandwidth=16 mbps egress"))]
    assert shown("profile=lte", own, settings=nothing) == expected
    assert shown(own, "profile=lte", settings=nothing) == expected


def test_a_rule_of_another_kind_adds_up(nothing: Settings) -> None:
    found = shown("profile=lte", "duplicate=1% egress", settings=nothing)
    assert len(found) == len(built_in()["lte"].rules) + 1


@pytest.mark.parametrize(
    ("second", "problem"),
    [("profile=3g", "two profiles: lte and 3g"), ("profile=lte", "the profile lte twice")],
)
def test_there_is_one_profile(second: str, problem: str, nothing: Settings) -> None:
    with pytest.raises(UsageError) as caught:
        parse_rules(["profile=lte", second], nothing)
    assert caught.value.message == problem
    assert caught.value.tip


def test_two_profiles_that_have_nothing_in_common_are_still_two(tmp_path: Path) -> None:
    (tmp_path / "lossy.toml").write_text('loss = "1%"')
    (tmp_path / "slow.toml").write_text('up = "1 mbps"')
    for path in (tmp_path, *tmp_path.iterdir()):
        path.chmod(0o755)
    with pytest.raises(UsageError, match="two profiles: lossy and slow"):
        parse_rules(["profile=lossy", "profile=slow"], Settings(program_dir=tmp_path))


def test_compile_explains_what_a_profile_stands_for() -> None:
    done = podmgr("compile", "--explain", "--rule", "profile=3g", "loss=1% egress")
    assert done.stderr == ""
    assert [line for line in done.stdout.splitlines() if "=" in line and not line.startswith(" ")] == [
        "loss=uniform egress 1%",
        "bandwidth=768 kbps egress algorithm=edt",
        "bandwidth=1.6 mbps ingress algorithm=edt",
        "delay=150ms egress",
        "delay=150ms ingress",
    ]
    assert done.stdout.count("podmgr profiles 3g says where its figures are from") == 4


def test_compile_without_a_rule_is_a_usage_error() -> None:
    done = podmgr("compile")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no rule\n")
