"""The progress bar: a callback like any other (transformers' TrainerCallback protocol)."""

import sys
import time
from typing import Any

from tqdm import tqdm

_SMOOTHING = 0.9


class ProgressBar:
    """Value (smoothed), tie rate, examples a second and the time left, on stderr.

    Quiet where stderr is no terminal: then a line is written at each validation.
    """

    def __init__(self) -> None:
        self.bar: Any = None
        self.value: float | None = None
        self.scored, self.start = 0, time.perf_counter()
        self.live = sys.stderr.isatty()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            unit="step",
            disable=not self.live,
            file=sys.stderr,
            dynamic_ncols=True,
        )

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, examples: int = 0, **kwargs: Any
    ) -> None:
        self.scored += examples
        if self.bar is not None:
            self.bar.set_description(kwargs.get("phase", "train"), refresh=True)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        value = (logs or {}).get("value")
        if value is not None:
            old = value if self.value is None else self.value
            self.value = _SMOOTHING * old + (1 - _SMOOTHING) * value
        if self.bar is not None and self.value is not None:
            rate = self.scored / (time.perf_counter() - self.start)
            ties = (logs or {}).get("tie_rate", 0.0)
            self.bar.set_postfix_str(f"value {self.value:.3f}, ties {ties:.0%}, {rate:.0f} ex/s")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_evaluate(
        self,
        args: Any,
        state: Any,
        control: Any,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        m = metrics or {}
        seconds = time.perf_counter() - self.start
        line = (
            f"step {m.get('step', 0):>5}/{state.max_steps}  {m.get('split', '')} "
            f"{m.get('objective', '')} {_number(m.get('value'))} (n={m.get('n', 0)})  "
            f"{seconds:.0f} s"
        )
        if self.bar is not None and self.live:
            self.bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
