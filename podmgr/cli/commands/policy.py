"""`podmgr policy`: its options; `rules.policy` makes what it prints."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from podmgr.cli.render import Format, document
from podmgr.errors import EXIT_DONE

if TYPE_CHECKING:
    from yaml.nodes import ScalarNode
    from yaml.representer import SafeRepresenter


class _Form(StrEnum):
    """The values of -o here: what kubectl apply reads."""

    YAML = "yaml"
    JSON = "json"


class _Expression(str):
    """Text that YAML shows as it is, on a line of its own."""

    __slots__ = ()


def command(
    warn: Annotated[
        bool, typer.Option("--warn", help="Let the API server warn of what it would refuse, and audit it.")
    ] = False,
    output: Annotated[_Form, typer.Option("-o", "--output", help="How to print it.")] = _Form.YAML,
) -> int:
    """Print a policy by which the API server refuses annotations that podmgr could not read.

    A ValidatingAdmissionPolicy and its binding, for Kubernetes 1.30 or later:
    podmgr policy | kubectl apply -f -
    """
    from podmgr.rules.policy.documents import documents

    found = documents(warns=warn)
    if output is _Form.JSON:
        print(document({"apiVersion": "v1", "kind": "List", "items": found}, Format.JSON), end="")
    else:
        print(_as_yaml(found), end="")
    return EXIT_DONE


def _as_yaml(found: list[dict[str, Any]]) -> str:
    import yaml  # 45 ms

    class Dumper(yaml.SafeDumper):
        """Expressions as they are: quotes would double theirs."""

    def as_it_is(dumper: SafeRepresenter, text: _Expression) -> ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")

    Dumper.add_representer(_Expression, as_it_is)
    return str(yaml.dump_all(map(_marked, found), Dumper=Dumper, sort_keys=False, width=10_000))


def _marked(content: Any, key: str = "") -> Any:
    if isinstance(content, dict):
        return {name: _marked(value, name) for name, value in content.items()}
    if isinstance(content, list):
        return [_marked(value) for value in content]
    return _Expression(content) if key in ("expression", "messageExpression") else content
