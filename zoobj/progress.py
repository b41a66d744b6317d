"""The progress bar: a callback like any other (transformers' TrainerCallback protocol)."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from zoobj.stopping import ENDLESS

_SMOOTHING = 0.9
_SAMPLES = 4
_SHOWN = 60  # characters of a text in a table


class ProgressBar:
    """Value, smoothed value, ties, flips, eps, examples a second and the time left, on stderr.

    Every ``sample_steps`` steps a table of samples. Where stderr is no terminal it is quiet: a line
    is written at each validation.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.bar: Any = None
        self.smoothed: float | None = None
        self.text = ""
        self.scored, self.start = 0, time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.console.is_terminal:
            return
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
        )
        self.task = self.bar.add_task(
            "", total=None if state.max_steps >= ENDLESS else state.max_steps, text=""
        )
        self.bar.start()

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, examples: int = 0, **kwargs: Any
    ) -> None:
        self.scored += examples
        if self.bar is not None:
            self.bar.update(self.task, description=kwargs.get("phase", "train"))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        logs = logs or {}
        if "eps" not in logs:
            return  # an evaluation: on_evaluate has it
        value = logs.get("reward")
        if value is not None:
            old = value if self.smoothed is None else self.smoothed
            self.smoothed = _SMOOTHING * old + (1 - _SMOOTHING) * value
        rate = self.scored / (time.perf_counter() - self.start)
        self.text = (
            f"value {_number(value)} smoothed {_number(self.smoothed)} "
            f"ties {logs['tie_rate']:.0%} flips {logs['flip_rate']:.0%} "
            f"eps {logs['eps']:.3g} {rate:.0f} ex/s"
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is None:
            return
        self.bar.update(self.task, completed=state.global_step, text=self.text)
        samples = kwargs.get("samples")
        if samples and state.global_step % args.sample_steps == 0:
            self.bar.print(samples_table(samples, state.global_step))

    def on_evaluate(
        self,
        args: Any,
        state: Any,
        control: Any,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        values = {
            name: v for name, v in (metrics or {}).items() if name.startswith(("eval_", "test_"))
        }
        samples = next((n for name, n in values.items() if name.endswith("_samples")), 0)
        split, _, name = next(iter(values), "eval_").partition("_")
        seconds = time.perf_counter() - self.start
        of = "" if state.max_steps >= ENDLESS else f"/{state.max_steps}"
        self.console.print(
            f"step {state.global_step:>5}{of}  "
            f"{'validation' if split == 'eval' else split} {name} "
            f"{_number(next(iter(values.values()), None))} (n={samples})  {seconds:.0f} s",
            markup=False,
            soft_wrap=True,
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was, also after an error; may be called twice."""
        if self.bar is not None:
            self.bar.stop()


def samples_table(samples: Any, step: int) -> Table:
    """A few examples as both sides of a pair answered them.

    Args:
        samples: the outcomes of a step's offsets.
        step: in the title.
    """
    table = Table(title=f"step {step}", title_justify="left")
    for column in ("prompt (end)", "reference", "+", "score", "-", "score"):
        table.add_column(column, overflow="fold")
    plus, minus = samples[0], samples[1 if len(samples) > 1 else 0]
    for i in range(min(_SAMPLES, len(plus.batch))):
        sides = [(_output(side, i), _score(side, i)) for side in (plus, minus)]
        texts = (plus.batch.prompts[i], str(plus.batch.references[i]))
        table.add_row(*(_end(text) for text in (*texts, *sides[0], *sides[1])))
    return table


def _output(outcome: Any, i: int) -> str:
    for column in ("completions", "predictions", "reference_logprob"):
        values = getattr(outcome.batch, column)
        if values is not None:
            return str(values[i])
    return ""


def _score(outcome: Any, i: int) -> str:
    return "" if outcome.scores is None else _number(outcome.scores[i])


def _end(text: str) -> str:
    from rich.markup import escape

    line = " ".join(text.split())
    return escape(line if len(line) <= _SHOWN else "..." + line[-_SHOWN:])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
