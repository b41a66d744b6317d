"""The model card: what was tuned on what, how, and what it came to."""

from zoobj.config import ZOConfig
from zoobj.result import Result
from zoobj.run import RunFolder

_CARD = """---
base_model: {base}
library_name: transformers
tags: [zoobj, zeroth-order]
---

# {base} tuned on {objective}

Tuned by zoobj ({what}, method `{method}`) directly on the {objective} of
task `{task}`: no gradients, {evals} scored training examples in {steps} steps.

| {objective} on {n} {split} examples | |
|---|---|
| before | {before:.4f} |
| after | {after:.4f} |
| difference, 95 % paired bootstrap | {difference:+.4f} [{low:+.4f}, {high:+.4f}] |
| verdict | {verdict} |

The weights are those of step {best_step}, the best on validation; the test split took no part in
choosing them.

| step | validation {objective} |
|---|---|
{curve}

## Data

| split | fingerprint |
|---|---|
{data}

## Again

Settings are in `config.yaml`, every step in `log.jsonl`. The run once more:

    zoobj train --config config.yaml --output_dir again

The weights from the log alone, without a single evaluation (the base has checksum {checksum}):

    zoobj replay --model_name_or_path {base} --log log.jsonl --until {best_step} --output model
"""

_WHAT = {
    "full": "all trainable weights",
    "steer": "vectors added after layers",
    "scale": "factors on norms",
    "lora": "low-rank products beside linear layers",
    "prompt": "virtual tokens before the prompt",
}


def model_card(args: ZOConfig, result: Result, run: RunFolder) -> str:
    """Markdown with the front matter of the Hugging Face hub."""
    curve = "\n".join(
        f"| {line['step']} | {'-' if line['value'] is None else format(line['value'], '.4f')} |"
        for line in run.evaluations
        if line["split"] == "validation"
    )
    data = "\n".join(f"| {split} | {digest} |" for split, digest in run.this["data"].items())
    return _CARD.format(
        base=args.model_name_or_path,
        checksum=run.this["base_checksum"],
        task=args.task,
        what=_WHAT[args.tune],
        low=result.ci95[0],
        high=result.ci95[1],
        curve=curve,
        data=data,
        **{name: value for name, value in vars(result).items() if name != "ci95"},
    )
