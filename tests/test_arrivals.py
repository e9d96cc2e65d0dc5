"""When requests come: rates that a count confirms, and traces as they are published."""

from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import pytest

from poclib import arrivals
from poclib.errors import ParameterError


def test_poisson_arrivals_have_their_rate_and_repeat_by_seed():
    found = arrivals.poisson(50.0, 20_000, seed=3)
    gaps = [later.at_ms - one.at_ms for one, later in pairwise(found)]
    assert mean(gaps) == pytest.approx(20.0, rel=0.03)
    assert stdev(gaps) == pytest.approx(20.0, rel=0.03), "an exponential's deviation is its mean"
    assert found == arrivals.poisson(50.0, 20_000, seed=3) != arrivals.poisson(50.0, 20_000, seed=4)


def test_a_pattern_fills_its_time_and_is_stretched_from_rate_to_rate():
    slow, fast = (arrivals.filling(rate, 300, seed=3) for rate in (5.0, 20.0))
    assert slow[-1].at_ms == pytest.approx(60_000) and fast[-1].at_ms == pytest.approx(15_000)
    assert all(a.at_ms == pytest.approx(4 * b.at_ms) for a, b in zip(slow, fast, strict=True))


def test_a_published_trace_is_read_with_its_lengths_and_sorted(tmp_path: Path):
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:47.6805900,374,44\n2023-11-16 18:15:46.6805900,396,109\n"
    )
    first, second = arrivals.trace(path)
    assert first == (0.0, 396, 109)
    assert second.at_ms == pytest.approx(1000.0, abs=0.001)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("when,what\n1,2\n", "a column TIMESTAMP or at_ms"),
        ("at_ms,prompt_tokens\n1,2\nsoon,3\n", "line 3"),
        ("at_ms\n", "needs rows"),
    ],
)
def test_a_trace_that_is_none_is_refused_with_its_line(tmp_path: Path, text: str, said: str):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ParameterError, match=said):
        arrivals.trace(path)


def test_a_rate_of_nothing_is_refused():
    with pytest.raises(ParameterError, match="no rate"):
        arrivals.poisson(0.0, 1, seed=0)
