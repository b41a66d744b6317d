"""How many scored examples a held-out score takes: zoobj's defaults beside MeZO at its best.

    python benchmarks/sample_efficiency.py --task squad_mini --max_evals 25600 --output_dir D
    python benchmarks/sample_efficiency.py --task question_mini --objective f1
    python benchmarks/sample_efficiency.py --task sst2 --train_file train.tsv --test_file dev.tsv \\
        --model_name_or_path FOLDER --max_evals 6400 --seeds 1,2,3

Same model, data, minibatches and objective; a scored example is one at one point, so that a pair on
64 examples costs 128. Both keep the weights that were best on validation; the test split, looked at
--marks times on the way for the curves, chooses nothing but MeZO's settings, which favours it: all
of --grid_eps x --grid_rates run on --grid_seeds, and the --shortlist best by their final test score
run on all --seeds; the best of these is "MeZO, tuned". zoobj (--arms) gets no tuning:

zoobj        the defaults
zoobj-metric the metric alone, without a tie-breaker, the rest by default
zoobj-full   all weights, the rest by default

MeZO is written here as it is commonly coded: torch's normal noise from a global seed, passes +1, -2
and +1, a constant learning rate, no normalisation. Each run is a process of its own and leaves
D/NAME.json, so that what was done is not done again. Writes sample_efficiency.png and .md.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from zoobj import ZOConfig, ZOTrainer
from zoobj.assemble import make_model, make_scorer, make_task
from zoobj.data import load_splits, minibatch
from zoobj.objective import as_objective
from zoobj.outcome import judge
from zoobj.signal import loss

ARMS: dict[str, dict[str, Any]] = {
    "zoobj": {},
    "zoobj-metric": {"tie_breaker": "none"},
    "zoobj-full": {"tune": "full"},
}
Run = dict[str, Any]


def settings(o: argparse.Namespace, **more: Any) -> ZOConfig:
    names = ("model_name_or_path", "gguf_file", "dtype", "task", "objective")
    names += ("train_file", "test_file", "max_train_samples", "max_eval_samples")
    told = {name: getattr(o, name) for name in (*names, "max_test_samples")}
    return ZOConfig(**{k: v for k, v in told.items() if v is not None}, **more)


class Curve:
    """Held-out values on the way, and the one that validation chooses."""

    def __init__(self, o: argparse.Namespace, score: Callable[[str], float], sign: int):
        self.o, self.score, self.sign = o, score, sign
        self.points: list[tuple[int, float]] = []
        self.best = (float("inf"), float("nan"))  # validation's loss, test's value

    def look(self, evals: int) -> None:
        if evals >= len(self.points) * self.o.max_evals / self.o.marks:
            test = self.score("test")
            self.points.append((evals, test))
            self.best = min(self.best, (self.sign * self.score("validation"), test))

    def told(self) -> Run:
        return {"curve": self.points, "final": self.best[1]}


def run_zoobj(o: argparse.Namespace, name: str, seed: int) -> Run:
    """The run itself keeps to its own validations; the curve is looked at from outside."""
    out = str(Path(o.output_dir) / f"{name}-run")
    budget = {"max_evals": o.max_evals, "seed": seed, "output_dir": out, "disable_tqdm": True}
    arm = name.rpartition("-")[0]
    trainer = ZOTrainer(args=settings(o, **budget, **ARMS[arm], resume_from_checkpoint="auto"))

    def score(split: str) -> float:
        trainer.track.walk.goto({})
        return trainer.evaluate(split).value

    curve = Curve(o, score, int(loss(trainer.objective, 1.0)))

    class Look:
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            curve.look(0)

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            curve.look(trainer.run.evals)

    trainer.callbacks.callbacks.append(Look())
    result = trainer.train()
    steps = {"tie_rate": result.tie_rate, "seconds": result.seconds, "evals": result.evals}
    return {**curve.told(), "final": result.after, **steps}


def run_mezo(o: argparse.Namespace, eps: float, rate: float, seed: int) -> Run:
    """MeZO as coded, on the task's objective."""
    args = settings(o, tune="full", seed=seed)
    model, tokenizer = make_model(args)
    task = make_task(args)
    objective = as_objective(args.objective or task.objective)
    scorer = make_scorer(args, model, tokenizer, task)
    data = load_splits(args, task, scorer)
    size, ties, evals = args.per_device_train_batch_size, 0, 0

    def value(examples: Any) -> float:
        return judge(objective, scorer(examples, objective.needs)).value

    def perturb(step: int, scale: float) -> None:
        torch.manual_seed(seed * 1_000_003 + step)  # noqa: TID251
        for param in model.parameters():
            z = torch.normal(0.0, 1.0, param.shape, device=param.device, dtype=param.dtype)
            param.data = param.data + scale * z

    curve = Curve(o, lambda split: value(data[split]), int(loss(objective, 1.0)))
    curve.look(0)
    for step in range(o.max_evals // (2 * size)):
        examples = minibatch(data["train"], size, seed, step)
        perturb(step, eps)
        plus = loss(objective, value(examples))
        perturb(step, -2 * eps)
        minus = loss(objective, value(examples))
        perturb(step, eps)
        perturb(step, -rate * (plus - minus) / (2 * eps))
        ties += plus == minus
        evals += 2 * size
        curve.look(evals)
    return {**curve.told(), "tie_rate": ties / (step + 1), "evals": evals}


def mezo_name(eps: str, rate: str, seed: int) -> str:
    return f"mezo_{eps}_{rate}-{seed}"


def only(o: argparse.Namespace) -> None:
    arm, _, seed = o.only.rpartition("-")
    if arm.startswith("mezo"):
        eps, rate = (float(x) for x in arm.split("_")[1:])
        told = run_mezo(o, eps, rate, int(seed))
    else:
        told = run_zoobj(o, o.only, int(seed))
    (Path(o.output_dir) / f"{o.only}.json").write_text(json.dumps(told) + "\n")


def run_all(o: argparse.Namespace, names: list[str]) -> dict[str, Run]:
    """Each in a process of its own, --jobs at once, unless its result is there."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // o.jobs))}

    def one(name: str) -> Run:
        file = Path(o.output_dir) / f"{name}.json"
        if not file.is_file():
            command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
            subprocess.run(command, check=True, env=environment)
            print(name, json.loads(file.read_text())["final"], flush=True)
        return json.loads(file.read_text())  # type: ignore[no-any-return]

    with ThreadPoolExecutor(o.jobs) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def tuned_mezo(o: argparse.Namespace, seeds: list[int], sign: int) -> tuple[str, list[Run]]:
    """The best settings of the grid, by the mean of final test scores, and their runs."""
    pairs = [(e, r) for e in o.grid_eps.split(",") for r in o.grid_rates.split(",")]
    first = [int(s) for s in o.grid_seeds.split(",")]

    def mean(pair: tuple[str, str], chosen: list[int]) -> float:
        found = run_all(o, [mezo_name(*pair, seed) for seed in chosen])
        return sign * fmean(run["final"] for run in found.values())

    run_all(o, [mezo_name(*pair, seed) for pair in pairs for seed in first])
    shortlist = sorted(pairs, key=lambda pair: mean(pair, first))[: o.shortlist]
    run_all(o, [mezo_name(*pair, seed) for pair in shortlist for seed in seeds])
    best = min(shortlist, key=lambda pair: mean(pair, seeds))
    runs = run_all(o, [mezo_name(*best, seed) for seed in seeds])
    return f"MeZO, eps {best[0]}, lr {best[1]}", list(runs.values())


def needed(run: Run, goal: float, sign: int) -> float:
    """Scored examples until the held-out score is as good as the goal; infinite if never."""
    return next((n for n, v in run["curve"] if sign * v <= sign * goal), float("inf"))


def report(o: argparse.Namespace, groups: dict[str, list[Run]], goal: float, sign: int) -> str:
    lines = [
        f"start {median(r['curve'][0][1] for rs in groups.values() for r in rs):.4f}; "
        f"MeZO's median at the end, {goal:.4f}, is the goal",
        "",
        "| | final, median [lowest, highest] | examples to the goal, median [all] | of budget |",
        "|---|---|---|---|",
    ]
    for name, runs in groups.items():
        final = sorted(run["final"] for run in runs)
        counts = sorted(needed(run, goal, sign) for run in runs)
        shown = ", ".join("never" if n == float("inf") else f"{n:.0f}" for n in counts)
        lines.append(
            f"| {name} | {median(final):.4f} [{final[0]:.4f}, {final[-1]:.4f}] | "
            f"{median(counts):.0f} [{shown}] | {median(counts) / o.max_evals:.2f} |"
        )
    return "\n".join(lines)


def plot(groups: dict[str, list[Run]], goal: float, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for number, (label, runs) in enumerate(groups.items()):
        columns = list(zip(*(run["curve"] for run in runs), strict=False))
        x = [median(n for n, _ in column) for column in columns]
        values = [sorted(v for _, v in column) for column in columns]
        axes.plot(x, [median(v) for v in values], f"C{number}.-", label=label)
        axes.fill_between(
            x, [v[0] for v in values], [v[-1] for v in values], color=f"C{number}", alpha=0.2
        )
    axes.axhline(goal, color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="scored training examples", ylabel="held-out score (median, all seeds)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    o = parsed()
    out = Path(o.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    if o.only:
        only(o)
        return
    seeds = [int(seed) for seed in o.seeds.split(",")]
    args = settings(o)
    sign = int(loss(as_objective(args.objective or make_task(args).objective), 1.0))
    name, runs = tuned_mezo(o, seeds, sign)
    groups = {name: runs}
    for arm in o.arms.split(","):
        groups[arm] = list(run_all(o, [f"{arm}-{seed}" for seed in seeds]).values())
    goal = median(run["final"] for run in runs)
    table = report(o, groups, goal, sign)
    print(table)
    (out / "sample_efficiency.md").write_text(table + "\n")
    plot(groups, goal, out / "sample_efficiency.png")


def parsed() -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = parser.add_argument
    for name in ("model_name_or_path", "gguf_file", "dtype", "objective"):
        add(f"--{name}")
    add("--train_file")
    add("--test_file")
    add("--task", default="squad_mini")
    for name in ("max_train_samples", "max_eval_samples", "max_test_samples"):
        add(f"--{name}", type=int)
    add("--max_evals", type=int, default=25_600)
    add("--seeds", default="1,2,3,4,5")
    add("--arms", default=",".join(ARMS))
    add("--grid_eps", default="1e-3,3e-3,1e-2")
    add("--grid_rates", default="1e-4,3e-4,1e-3,3e-3")
    add("--grid_seeds", default="1")
    add("--shortlist", type=int, default=3)
    add("--marks", type=int, default=16, help="looks at validation and test on the way")
    add("--jobs", type=int, default=1, help="runs at once")
    add("--output_dir", default="sample_efficiency")
    add("--only", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
