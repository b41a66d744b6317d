"""What it costs to bring back a run: replay of its log, checkpoints, bytes of the log.

    python benchmarks/replay.py                                     # tiny-qa, 1000 steps
    python benchmarks/replay.py --model_name_or_path DIR --max_steps 20 ...

Trains, replays the log on the base model, checks that the weights are the same bits, and measures
one checkpoint. Replay counts what `zoobj replay` does after the model is loaded; a checkpoint's
resume reads it back into a loaded model.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from zoobj import ZOConfig, ZOTrainer, checkpoint
from zoobj.environment import checksum
from zoobj.models import load_model
from zoobj.replay import read_log, retrace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model_name_or_path", default="tiny-qa")
    parser.add_argument("--max_steps", type=int, default=1000)
    parser.add_argument("--per_device_train_batch_size", type=int, default=64)
    parser.add_argument("--max_test_samples", type=int, default=64)
    parser.add_argument("--output", help="also write the figures as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(args, Path(folder))
    for name, value in figures.items():
        print(f"{name:<28} {value:.6g}" if isinstance(value, float) else f"{name:<28} {value}")
    if args.output:
        Path(args.output).write_text(json.dumps(figures, indent=2) + "\n")


def measure(args: argparse.Namespace, folder: Path) -> dict[str, float | str]:
    """Train, replay, save and load; seconds, bytes and ratios."""
    settings = ZOConfig(
        model_name_or_path=args.model_name_or_path,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.per_device_train_batch_size,
        max_eval_samples=args.max_test_samples,
        max_test_samples=args.max_test_samples,
        eval_steps=args.max_steps,
        output_dir=str(folder / "run"),
    )
    trainer = ZOTrainer(args=settings)
    trainer.train()
    trainer.track.to(args.max_steps, trainer.run)
    live = checksum(trainer.model.named_parameters())
    steps, text = read_log(folder / "run")
    model, tokenizer = load_model(args.model_name_or_path)
    start = time.perf_counter()
    walk = retrace(model, steps)
    seconds = {"replay": time.perf_counter() - start}
    assert walk is not None
    assert checksum(model.named_parameters()) == live, "replayed weights differ"
    place, end = folder / "run" / f"checkpoint-{args.max_steps}", trainer.run.log.hash
    start = time.perf_counter()
    checkpoint.save(place, model, tokenizer, walk, end, trainer.callbacks.state)
    seconds["save"] = time.perf_counter() - start
    start = time.perf_counter()
    assert checkpoint.load(place, model, walk, end)
    seconds["load"] = time.perf_counter() - start
    training = sum(line["seconds"] for line in steps)
    return {
        "training, s": training,
        "replay, s": seconds["replay"],
        "replay / training": seconds["replay"] / training,
        "replay, s a step": seconds["replay"] / len(steps),
        "log, bytes a step": len(text) / len(steps),
        "checkpoint, bytes": float(sum(f.stat().st_size for f in place.iterdir())),
        "checkpoint save, s": seconds["save"],
        "checkpoint load, s": seconds["load"],
        "checksum": live,
    }


if __name__ == "__main__":
    main()
