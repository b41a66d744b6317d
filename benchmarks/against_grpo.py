"""TRL's GRPOTrainer and zoobj, side by side: held-out score over time, and peak memory.

    pip install 'zoobj[bench]'
    python benchmarks/against_grpo.py --train_file train.json --test_file test.json \\
        --model_name_or_path FOLDER [--gguf_file FILE] --seconds 900 --seeds 1,2,3 --output_dir D

Same model, data, prompts, reward (the task's objective), machine and training seconds; loading and
the evaluations of this script are not counted. zoobj runs with its defaults and --tune (what it
spends on its own validation is counted). GRPO takes the best learning rate of a small grid for this
very data, chosen by the mean over seeds on the *test* split, which favours it; temperature 1, 8
completions a prompt, 32 a step, no KL term (TRL's default). Its weights are float32 (--grpo_dtype):
in bfloat16 steps of 1e-5 are lost in rounding.

Each run is a process of its own and leaves D/NAME.json, so that what was done is not done again.
Held-out examples are scored greedily by zoobj's scorer, for both. zoobj's weights at a moment come
from its log afterwards, so that measuring them costs it no time.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

from zoobj import ZOConfig, ZOTrainer
from zoobj.assemble import make_model, make_scorer, make_task
from zoobj.environment import peak_memory
from zoobj.objective import as_objective
from zoobj.outcome import judge
from zoobj.scoring import as_batch
from zoobj.scoring.generation import cut

COMPLETIONS, STEP = 8, 32  # of a prompt, and of a step of GRPO

Curve = list[tuple[float, float]]
"""Training seconds and the held-out score then."""


def settings(o: argparse.Namespace, **more: Any) -> ZOConfig:
    told = {
        "model_name_or_path": o.model_name_or_path,
        "gguf_file": o.gguf_file,
        "dtype": o.dtype,
        "task": o.task,
        "train_file": o.train_file,
        "test_file": o.test_file,
        "per_device_eval_batch_size": o.per_device_eval_batch_size,
        "max_test_samples": o.max_test_samples,
    }
    return ZOConfig(**{**told, **more})


class HeldOut:
    """Scores a model on the test split."""

    def __init__(self, args: ZOConfig, model: Any, tokenizer: Any):
        task = make_task(args)
        self.objective = as_objective(task.objective)
        self.scorer = make_scorer(args, model, tokenizer, task)
        self.examples = task.examples("test", args.max_test_samples)

    def __call__(self) -> float:
        return judge(self.objective, self.scorer(self.examples, self.objective.needs)).value


def run_zoobj(o: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Train by time alone, then measure the steps nearest to each mark."""
    out = Path(o.output_dir) / name
    args = settings(
        o, tune=o.tune, max_seconds=o.seconds, seed=seed, disable_tqdm=True, eval_steps=o.eval_steps
    )
    args = args.model_copy(
        update={"output_dir": str(out), "resume_from_checkpoint": "auto", "max_test_samples": 1}
    )
    result = ZOTrainer(args=args).train()
    peak = result.peak_memory_bytes
    spent = [0.0]  # before each step, without zoobj's own validations
    for line in (out / "log.jsonl").read_text().splitlines():
        spent.append(spent[-1] + json.loads(line)["seconds"])
    curve: Curve = []
    for mark in marks(o):
        step = max(number for number, seconds in enumerate(spent) if seconds <= mark)
        trainer = ZOTrainer.from_log(str(out), until=step, args=settings(o, output_dir=f"{out}-x"))
        held_out = HeldOut(trainer.args, trainer.model, trainer.tokenizer)
        curve.append((mark, held_out()))
        print(name, *curve[-1], flush=True)
    chosen = ZOTrainer.from_log(
        str(out), until=result.best_step, args=settings(o, output_dir=f"{out}-x")
    )
    final = HeldOut(chosen.args, chosen.model, chosen.tokenizer)()
    return {"curve": curve, "final": final, "peak": peak, "evals": result.evals}


def run_grpo(o: argparse.Namespace, seed: int, rate: float) -> dict[str, Any]:
    """TRL's trainer, stopped by time; measured on the way with its clock halted."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    args = settings(o, dtype=o.grpo_dtype)
    model, tokenizer = make_model(args)
    held_out, task = HeldOut(args, model, tokenizer), make_task(args)
    examples = {e.prompt: e for e in task.examples("train")}
    objective, curve, marks_left = held_out.objective, [], marks(o)

    def reward(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float | None]:
        asked, texts = [examples[p] for p in prompts], [cut(c, task.stop) for c in completions]
        return judge(objective, as_batch(asked, completions=texts)).scores or []

    class Clock(TrainerCallback):
        start, halted, peak = 0.0, 0.0, 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.start = time.perf_counter()
            self.look()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.look() >= o.seconds:
                control.should_training_stop = True

        def look(self) -> float:
            now = time.perf_counter()
            spent = now - self.start - self.halted
            if marks_left and spent >= marks_left[0]:
                marks_left.pop(0)
                self.peak = max(self.peak, peak_memory(model.device))
                model.eval()
                curve.append((spent, held_out()))
                model.train()
                print("grpo", seed, rate, *curve[-1], flush=True)
                self.halted += time.perf_counter() - now
            return spent

    clock = Clock()
    GRPOTrainer(
        model=model,
        reward_funcs=reward,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in examples]),
        callbacks=[clock],
        args=GRPOConfig(
            output_dir=str(Path(o.output_dir) / "trl"),
            learning_rate=rate,
            lr_scheduler_type="constant",
            num_generations=COMPLETIONS,
            per_device_train_batch_size=o.grpo_batch,
            gradient_accumulation_steps=STEP // o.grpo_batch,
            max_completion_length=task.max_new_tokens,
            max_steps=10**6,
            temperature=1.0,
            save_strategy="no",
            report_to=[],
            logging_steps=10**6,
            disable_tqdm=True,
            seed=seed,
            bf16=False,
            gradient_checkpointing=False,
        ),
    ).train()
    return {"curve": curve, "final": curve[-1][1], "peak": peak_memory(model.device)}


def run_inference(o: argparse.Namespace) -> dict[str, Any]:
    """What scoring the test split takes."""
    args = settings(o)
    model, tokenizer = make_model(args)
    return {"final": HeldOut(args, model, tokenizer)(), "peak": peak_memory(model.device)}


def marks(o: argparse.Namespace) -> list[float]:
    return [o.seconds * i / o.marks for i in range(o.marks + 1)]


def run(name: str, o: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own, unless its result is there."""
    file = Path(o.output_dir) / f"{name}.json"
    if not file.is_file():
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", name], check=True)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def only(o: argparse.Namespace) -> None:
    who, *rest = o.only.split("-")
    if who == "zoobj":
        told = run_zoobj(o, o.only, int(rest[0]))
    elif who == "grpo":
        told = run_grpo(o, int(rest[0]), float(rest[1].replace("m", "-")))
    else:
        told = run_inference(o)
    (Path(o.output_dir) / f"{o.only}.json").write_text(json.dumps(told, indent=1) + "\n")


def plot(groups: dict[str, list[dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for number, (label, runs) in enumerate(groups.items()):
        for index, told in enumerate(runs):
            x, y = zip(*told["curve"], strict=True)
            axes.plot(x, y, f"C{number}.-", alpha=0.75, label=label if not index else None)
    axes.set(xlabel="training seconds", ylabel="held-out score", title="same model, data, machine")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    o = parsed()
    Path(o.output_dir).mkdir(parents=True, exist_ok=True)
    if o.only:
        only(o)
        return
    seeds, rates = o.seeds.split(","), [rate for rate in o.grpo_rates.split(",") if rate]
    base = run("inference", o)
    groups = {f"zoobj --tune {o.tune}": [run(f"zoobj-{seed}", o) for seed in seeds]}
    for rate in rates:
        name = rate.replace("-", "m")
        groups[f"GRPO, lr {rate}"] = [run(f"grpo-{seed}-{name}", o) for seed in seeds]
    print(f"\nbefore {base['final']:.4f}; inference takes {base['peak'] / 2**30:.2f} GiB")
    print(f"after {o.seconds:.0f} s         mean   gain  by seed                    peak/inference")
    for label, runs in groups.items():
        final = [told["final"] for told in runs]
        peak = max(told["peak"] for told in runs) / base["peak"]
        by_seed = " ".join(f"{value:.4f}" for value in final)
        gain = mean(final) - base["final"]
        print(f"{label:<20} {mean(final):.4f} {gain:+.4f}  {by_seed:<27} {peak:.2f}")
    plot(groups, Path(o.output_dir) / "against_grpo.png")


def parsed() -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--model_name_or_path", default="tiny-qa")
    add("--gguf_file")
    add("--dtype", default="auto")
    add("--task", default="squad_mini")
    add("--train_file")
    add("--test_file")
    add("--max_test_samples", type=int)
    add("--per_device_eval_batch_size", type=int, default=64)
    add("--tune", default="steer")
    add("--eval_steps", type=int, default=25, help="between zoobj's own validations")
    add("--seconds", type=float, default=900.0)
    add("--marks", type=int, default=6, help="measurements on the way")
    add("--seeds", default="1,2,3")
    add("--grpo_rates", default="3e-6,1e-5,3e-5", help="learning rates; '' leaves GRPO out")
    add("--grpo_dtype", default="float32")
    add("--grpo_batch", type=int, default=8, help="completions in one backward pass")
    add("--output_dir", default="against_grpo")
    add("--only", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
