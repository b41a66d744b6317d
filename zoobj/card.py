"""The model card: what was tuned on what, how, and what it came to."""

from collections.abc import Sequence
from typing import Any

from zoobj.config import ZOConfig
from zoobj.run import Result

_CARD = """---
base_model: {base}
tags: [zoobj, zeroth-order]
---

# {base} tuned on {objective}

Tuned by zoobj with `{method}` directly on the {objective} of
task `{task}`: no gradients, {evals} scored training examples in {steps} steps.

| {objective} on {n} {split} examples | |
|---|---|
| before | {before:.4f} |
| after | {after:.4f} |
| difference, 95 % paired bootstrap | {difference:+.4f} [{low:+.4f}, {high:+.4f}] |
| verdict | {verdict} |

The weights are those of the best validation score; the test split took no part in choosing them.

| step | validation {objective} |
|---|---|
{curve}

Settings are in `config.yaml`, every step in `log.jsonl`. To repeat the run:

    zoobj train --config config.yaml --output_dir again
"""


def model_card(args: ZOConfig, result: Result, evaluations: Sequence[dict[str, Any]]) -> str:
    """Markdown with the front matter of the Hugging Face hub."""
    curve = "\n".join(
        f"| {line['step']} | {'-' if line['value'] is None else format(line['value'], '.4f')} |"
        for line in evaluations
        if line["split"] == "validation"
    )
    return _CARD.format(
        base=args.model_name_or_path,
        task=args.task,
        low=result.ci95[0],
        high=result.ci95[1],
        curve=curve,
        **{name: value for name, value in vars(result).items() if name != "ci95"},
    )
