"""One self-contained HTML page of a run: the verdict, the curves, examples before and after."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoobj.config import ZOConfig
from zoobj.files import replace_text
from zoobj.labels import described
from zoobj.outcome import Outcome
from zoobj.result import Result

SHOWN = 10  # examples in the table

logger = logging.getLogger(__name__)

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>zoobj: {{ result.objective }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-size: 0.85rem } td, th { border-bottom: 1px solid #ccc;
padding: 0.3rem 0.6rem; text-align: left; vertical-align: top } svg { width: 100%; height: auto }
.improved { color: #17692b } .worse { color: #a31515 }
</style>
<h1>{{ args.model_name_or_path }} tuned on {{ result.objective }}</h1>
<p>{{ result }}</p>
<p class="{{ result.verdict }}"><strong>{{ result.verdict }}</strong>: 95 % paired bootstrap over
{{ result.n }} {{ result.split }} examples that took no part in training or selection.</p>
{% if result.labels %}<p>After tuning: {{ described(result.labels) }}.</p>{% endif %}
{{ plot | safe }}
<h2>Examples</h2>
<table><tr><th>prompt (end)</th><th>reference</th><th>before</th><th>after</th></tr>
{% for row in examples %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
<h2>Run</h2>
<table>{% for key, value in facts %}<tr><td>{{ key }}</td><td>{{ value }}</td></tr>
{% endfor %}</table>
</html>
"""


def write_report(
    path: Path,
    args: ZOConfig,
    result: Result,
    steps: Sequence[dict[str, Any]],
    evaluations: Sequence[dict[str, Any]],
    before: Outcome,
    after: Outcome,
) -> None:
    """Write the page; without matplotlib there is none, and the log says so."""
    try:
        plot = _plot(result, steps, evaluations)
    except ImportError:
        logger.info("no report.html: pip install 'zoobj[report]'")
        return
    import jinja2

    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    facts = {**vars(result), **args.model_dump()}.items()
    replace_text(
        path,
        page.render(
            args=args,
            result=result,
            plot=plot,
            facts=facts,
            examples=_examples(before, after),
            described=described,
        ),
    )


def _plot(
    result: Result, steps: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]
) -> str:
    """Value against scored examples, as SVG."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    values = ((line["evals"], line["values"]) for line in steps)
    scored = [(evals, told) for evals, told in values if told and None not in told]
    axes.plot(
        [evals for evals, _ in scored],
        [sum(values) / len(values) for _, values in scored],
        ".",
        color="#bbbbbb",
        markersize=3,
        label="training minibatches, mean of the offsets",
    )
    evals = [0, *(line["evals"] for line in steps)]
    curve = [
        (evals[line["step"]], line["value"])
        for line in evaluations
        if line["split"] == "validation" and line["value"] is not None and line["step"] < len(evals)
    ]
    axes.plot(*zip(*curve, strict=True), "o-", color="#1f5fa8", label="validation")
    for value, text in ((result.before, "before"), (result.after, "after")):
        axes.axhline(value, color="#17692b", linestyle="--", linewidth=1)
        axes.annotate(f"test {text}: {value:.3f}", (0, value), va="bottom", color="#17692b")
    axes.set(xlabel="scored training examples", ylabel=result.objective)
    axes.legend(loc="lower right", frameon=False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    return "".join(buffer.getvalue().partition("<svg")[1:])  # without the XML header


def _examples(before: Outcome, after: Outcome) -> list[tuple[str, str, str, str]]:
    """Examples whose output changed first, then others."""
    column = next(
        (c for c in ("completions", "reference_logprob") if getattr(before.batch, c) is not None),
        None,
    )
    if column is None:
        return []
    old, new = getattr(before.batch, column), getattr(after.batch, column)
    order = sorted(range(len(old)), key=lambda i: old[i] == new[i])
    return [
        (before.batch.prompts[i][-160:], str(before.batch.references[i]), str(old[i]), str(new[i]))
        for i in order[:SHOWN]
    ]
