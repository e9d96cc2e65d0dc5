"""Does the same experiment give the same verdict again, and does a strategy ever beat itself?

    .venv/bin/python benchmarks/reruns.py N [again|same]

Measures params/embedded.yaml for real. `again`: once, then N more times from that report alone,
as `poc rerun` does. `same`: N times a strategy against itself, one at a time on the faster
machine. Without a word both. Reports lie in data/runs/reruns, and what lies there is counted
too, so that N may come in pieces. About 40 s each, on a machine that does nothing else.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from poclib import report, stats
from poclib.cli import read_yaml
from poclib.measure import experiment
from poclib.parameters import Parameters
from poclib.reading import compare as agreement
from poclib.reading.reading import of
from poclib.records import Report
from poclib.showing import documents, words
from poclib.showing import format as notation

FOLDER = Path("data", "runs", "reruns")
# What each is measured with, and the name its reports begin with.
KINDS = {"again": "earliest-finish", "same": "sequential"}


def found(kind: str) -> list[Report]:
    """The reports of that kind so far, in order."""
    names = [name for name in report.names(FOLDER) if name.startswith(f"{kind}-")]
    return [report.load(name, FOLDER) for name in names]


def measure(kind: str) -> Report:
    """One more, saved: the first from the parameters, each other from the first one's report."""
    before = found(kind)
    if before:
        parameters = experiment.again(before[0], {}, {})
    else:
        given = {**read_yaml(Path("params", "embedded.yaml")), "strategy": KINDS[kind]}
        parameters = Parameters.read(given)
    named = parameters.model_copy(update={"experiment": f"{kind}-{len(before):03}"})
    return experiment.measure(named, folder=FOLDER)


def counted(kind: str) -> str:
    """What all reports of one kind say together."""
    reports = found(kind)
    headlines = [of(one).headline for one in reports]
    effects = Counter(words.effect(one) for one in headlines)
    verdicts = Counter(one.verdict for one in headlines)
    medians = [one.overhead_ratio.median or 0.0 for one in headlines]
    lines = [
        f"{kind}: {notation.many(len(reports), 'report')} of {KINDS[kind]}",
        f"  effect:  {dict(effects)}",
        f"  gate:    {dict(verdicts)}",
        f"  medians: {min(medians):.3f} to {max(medians):.3f}",
    ]
    if len(reports) > 1:
        first, *others = map(of, reports)
        again = [agreement.between(first, other) for other in others]
        places = Counter(one.place for one in again)
        equal, compared = (sum(getattr(one, k) for one in again) for k in ("equal", "compared"))
        lines += [
            f"  over the first: {dict(places)} the band; {sum(a.agrees for a in again)} of "
            f"{len(again)} agree",
            f"  answers equal to the first's: {equal} of {compared}",
        ]
    return "\n".join(lines)


def main() -> None:
    """Measure, a line each, then count."""
    count = int(sys.argv[1])
    kinds = sys.argv[2:] or list(KINDS)
    for kind in kinds:
        for _ in range(count):
            one = measure(kind)
            headline = of(one).headline
            against = stats.ratio_of_ratios(
                of(found(kind)[0]).headline.overhead_ratio, headline.overhead_ratio
            )
            print(
                f"{headline.report}: {words.ratio(headline)}, {words.effect(headline)}, "
                f"{headline.verdict}; over the first {documents.change(against)}",
                flush=True,
            )
    for kind in kinds:
        if found(kind):
            print(counted(kind))


if __name__ == "__main__":
    main()
