"""Where a rule was written, and which of two places is the stronger."""

from __future__ import annotations

import pytest

from podmgr.rules.source import CLI, POD, STANDARD, UNKNOWN, Layer, Source, parse_source


def test_command_line_beats_pod_beats_service_beats_namespace() -> None:
    sources = [CLI, POD, Source(Layer.SERVICE, "a"), Source(Layer.NAMESPACE, "shop"), STANDARD, UNKNOWN]
    strengths = [source.strength for source in sources]
    assert strengths == sorted(set(strengths), reverse=True)


@pytest.mark.parametrize(
    ("one", "other"),
    [("service/a", "service/b"), ("namespace/a", "namespace/b"), ("service/pod", "service/cli")],
)
def test_names_do_not_make_a_source_stronger(one: str, other: str) -> None:
    assert parse_source(one).strength == parse_source(other).strength < POD.strength


@pytest.mark.parametrize("text", ["cli", "pod", "service/front", "namespace/shop", "standard", "unknown"])
def test_source_is_read_as_it_is_written(text: str) -> None:
    assert str(parse_source(text)) == text


@pytest.mark.parametrize("text", ["", "cluster", "Pod", "services/a"])
def test_what_is_no_layer_is_no_source(text: str) -> None:
    with pytest.raises(ValueError, match="Layer"):
        parse_source(text)
