"""What looks at a change before others do: hooks, the workflow, and the forms of issues."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
HOOKS = ROOT / ".pre-commit-config.yaml"
WORKFLOWS = sorted((ROOT / ".github/workflows").iterdir())
TEMPLATES = ROOT / ".github/ISSUE_TEMPLATE"
FORMS = sorted(path for path in TEMPLATES.iterdir() if path.name != "config.yml")
ELEMENTS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def hooks() -> list[dict[str, Any]]:
    return [hook for repository in read(HOOKS)["repos"] for hook in repository["hooks"]]


def test_the_hooks_run_what_make_lint_runs() -> None:
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    commands = re.findall(r"^\t@(.*)$", lint, re.MULTILINE)
    assert [hook["entry"] for hook in hooks() if hook["language"] == "system"] == commands
    assert {repository["repo"] for repository in read(HOOKS)["repos"]} == {"local"}


@pytest.mark.parametrize(
    ("message", "is_refused"),
    [
        ("x" * 72, False),
        ("x" * 73, True),
        ("x" * 72 + "\n\n" + "y" * 100 + "\n", False),
        ("x" * 73 + "\n\nbody\n", True),
    ],
)
def test_a_subject_has_at_most_72_characters(message: str, is_refused: bool) -> None:
    (hook,) = (hook for hook in hooks() if hook.get("stages") == ["commit-msg"])
    assert (hook["language"], hook["args"]) == ("pygrep", ["--multiline"])
    pattern = re.compile(hook["entry"].encode(), re.MULTILINE | re.DOTALL)  # as pre-commit makes it
    assert bool(pattern.search(message.encode())) is is_refused


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_alone_and_names_its_actions_exactly(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        actions = [step["uses"] for step in job["steps"] if "uses" in step]
        assert all(re.fullmatch(r"[\w.-]+/[\w./-]+@v\d+\.\d+\.\d+", action) for action in actions), actions


def test_the_workflow_runs_what_decides() -> None:
    (job,) = read(ROOT / ".github/workflows/ci.yml")["jobs"].values()
    (command,) = (step["run"] for step in job["steps"] if "run" in step)
    assert re.fullmatch(r"sudo (?:PODMGR_\w+=\S+ )*\.ci/run", command)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_is_one_that_github_takes(path: Path) -> None:
    """https://docs.github.com/en/communities, "Syntax for issue forms"."""
    form = read(path)
    assert form.keys() <= {"name", "description", "title", "labels", "assignees", "projects", "type", "body"}
    assert form["name"] and form["description"]
    fields = [element for element in form["body"] if element["type"] != "markdown"]
    assert fields
    assert {element["type"] for element in form["body"]} <= ELEMENTS
    assert len({field["id"] for field in fields}) == len(fields)
    assert len({field["attributes"]["label"] for field in fields}) == len(fields)
    assert all(re.fullmatch(r"[\w-]+", field["id"]) for field in fields)


def test_who_reports_a_bug_is_asked_for_what_is_always_asked_back() -> None:
    bug = read(TEMPLATES / "bug.yml")
    needed = {
        element["attributes"]["label"]
        for element in bug["body"]
        if element.get("validations", {}).get("required")
    }
    assert any("podmgr doctor -o json" in label for label in needed)
    assert {"What did you do?", "What did you expect?", "What happened?", "Kernel"} <= needed


def test_questions_need_no_form() -> None:
    assert read(TEMPLATES / "config.yml") == {"blank_issues_enabled": True}
