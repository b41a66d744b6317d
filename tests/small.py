"""What tests of small runs share: settings, and a score that is cut off."""

import signal
from pathlib import Path
from typing import Any

from zoobj import ZOConfig


def few_steps(out: Path, **more: Any) -> ZOConfig:
    """A run of a few seconds, by gradients or derivatives."""
    settings: dict[str, Any] = {
        "max_steps": 6,
        "eval_steps": 2,
        "per_device_train_batch_size": 8,
        "max_train_samples": 64,
        "max_eval_samples": 16,
        "max_test_samples": 16,
        "max_new_tokens": 4,
        "disable_tqdm": True,
        "objective": "loglikelihood",
    }
    return ZOConfig(**{**settings, **more}, output_dir=str(out))


class Interrupting:
    """A score of completions; counts its calls, and is interrupted at one of them.

    Args:
        at: the number of that call, from 1.
        levels: how many scores there are; with few of them more tie.
    """

    def __init__(self, at: int = -1, levels: int = 97):
        self.at, self.levels, self.calls = at, levels, 0

    def __call__(self, completions: list[str], **kwargs: Any) -> list[float]:
        self.calls += 1
        if self.calls == self.at:
            signal.raise_signal(signal.SIGINT)
        return [float(sum(map(ord, text)) % self.levels) for text in completions]
