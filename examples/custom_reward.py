"""Tune on a reward of your own: any Python function with TRL's signature.

    python examples/custom_reward.py

The reward wants the right words in as few of them as possible, a number that has no gradient and
that no loss function approximates well. The same function works from the command line:

    zoobj train --objective examples/custom_reward.py:brief_and_right --output_dir out

Expected, 100 steps, seed 0, about a minute of one core of an AMD EPYC: the reward of 300 held-out
questions 0.629 -> 0.784, difference +0.155 [+0.127, +0.183]: improved. (Measured with
narrower noise streams: a seed now gives another run of the same kind.)
"""

import argparse
import tempfile
from typing import Any

from zoobj import ZOConfig, ZOTrainer


def brief_and_right(
    completions: list[str], answers: list[dict[str, Any]], **kwargs: Any
) -> list[float | None]:
    """1 for an accepted answer and nothing else, less 0.05 for each word beside it; 0 without one.

    ``answers`` is a column of the data set, given because the function asks for it by name. A row
    without an accepted answer can't be scored: that is None, never a number.
    """
    rewards: list[float | None] = []
    for completion, answer in zip(completions, answers, strict=True):
        accepted = [text.lower() for text in answer["text"]]
        found = [text for text in accepted if text in completion.lower()]
        if not accepted:
            rewards.append(None)
        elif not found:
            rewards.append(0.0)
        else:
            extra = len(completion.split()) - max(len(text.split()) for text in found)
            rewards.append(max(0.0, 1.0 - 0.05 * extra))
    return rewards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", default="runs/custom_reward")
    parser.add_argument("--max_evals", type=int, default=12_800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args()
    args = ZOConfig(
        output_dir=tempfile.mkdtemp() if options.smoke else options.output_dir,
        max_evals=128 if options.smoke else options.max_evals,
        max_test_samples=32 if options.smoke else None,
        max_eval_samples=32 if options.smoke else None,
        seed=options.seed,
    )
    trainer = ZOTrainer(model="tiny-qa", task="squad_mini", objective=brief_and_right, args=args)
    print(trainer.train())


if __name__ == "__main__":
    main()
