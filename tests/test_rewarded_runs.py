"""Whole runs on tiny-qa under objectives of several kinds: each gains, or says "not shown".

Those on an endpoint and on a program are in test_external.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from zoobj import ZOConfig, ZOTrainer

pytestmark = pytest.mark.slow

REWARDS = """
import asyncio

async def short_and_right(completions, answers, **kwargs):
    await asyncio.sleep(0)
    texts = [answer["text"] for answer in answers]
    return [
        any(t in c for t in accepted) - 0.05 * len(c.split())
        for c, accepted in zip(completions, texts)
    ]
"""


class Overlap:
    """A metric of evaluate's shape: shared words over all words."""

    def compute(self, predictions: list[str], references: list[Any]) -> dict[str, float]:
        both = zip(predictions, references, strict=True)
        pairs = [(set(p.split()), set(r[0].split())) for p, r in both]
        return {"overlap": sum(len(p & r) / max(1, len(p | r)) for p, r in pairs) / len(pairs)}


def run(objective: Any, folder: Path, **more: Any) -> tuple[Any, list[dict[str, Any]]]:
    args = ZOConfig(
        output_dir=str(folder),
        max_evals=3200,
        eval_steps=5,
        max_test_samples=150,
        disable_tqdm=True,
        **more,
    )
    result = ZOTrainer(objective=objective, args=args).train()
    lines = (folder / "log.jsonl").read_text().splitlines()
    return result, [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    "objective", ["token_f1", "rouge:kind=rougeL", Overlap()], ids=["token_f1", "rouge", "overlap"]
)
def test_metrics(objective: Any, tmp_path: Path) -> None:
    result, _ = run(objective, tmp_path / "run")
    assert result.verdict == "improved"
    assert result.after > result.before


def test_macro_f1_of_scikit_learn(tmp_path: Path) -> None:
    result, _ = run("sklearn:f1_score:average=macro", tmp_path / "run", task="question_mini")
    assert result.verdict in ("improved", "not shown")
    assert (result.verdict == "improved") == (result.ci95[0] > 0)


def test_an_async_reward_in_workers(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(REWARDS)
    spec = f"{tmp_path / 'rewards.py'}:short_and_right"
    result, _ = run(spec, tmp_path / "run", reward_workers=2, reward_timeout=20)
    assert result.verdict == "improved"
    told = json.loads((tmp_path / "run" / "scoring.json").read_text())
    assert told["workers"] == 2
    assert sum(told["failed"].values()) == 0


def test_a_sum_with_a_limit_shows_its_parts(tmp_path: Path) -> None:
    parts = ["token_f1", {"name": "length", "at_most": 4, "penalty": 0.1}]
    result, lines = run(parts, tmp_path / "run")
    assert result.verdict == "improved"
    assert all(set(line["rewards"]) == {"token_f1", "length"} for line in lines)
    assert lines[-1]["rewards"]["length"]["mean"] < lines[0]["rewards"]["length"]["mean"]
