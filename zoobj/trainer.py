"""The loop: score a batch at the offsets a method asks for, move, write a line; keep the best."""

import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

from zoobj import checkpoint, hub
from zoobj.assemble import (
    chosen,
    hears_ties,
    make_model,
    make_scorer,
    make_service,
    make_task,
    make_tie_breaker,
    make_tuned,
)
from zoobj.callbacks import Callbacks, step_logs
from zoobj.card import model_card
from zoobj.config import ZOConfig
from zoobj.data import limit_of, load_splits
from zoobj.environment import checksum, out_of_memory, peak_memory, release_memory
from zoobj.errors import UserError
from zoobj.files import StorageError, jsonable
from zoobj.gradient import make_step
from zoobj.identity import Parent, check_base, check_overlay, identity
from zoobj.interrupts import Interrupted, Interrupts
from zoobj.labels import labels, warn_of_collapse
from zoobj.lineage import inherited, inherited_overlay, parent_of, pointed_at, taken_up
from zoobj.models import warn_of_emulation
from zoobj.objective import as_objective
from zoobj.outcome import Outcome
from zoobj.overlay import Overlay
from zoobj.parameters import check_decay
from zoobj.parts import rewards
from zoobj.preflight import try_out
from zoobj.probe import Probed
from zoobj.report import write_report
from zoobj.result import Result, best_step, summarise
from zoobj.run import REPORT, RunFolder, check_output_dir, has_steps, resumes
from zoobj.schedule import LearningRate
from zoobj.stopping import ENDLESS, budget, stop_reason
from zoobj.task import Example, Task
from zoobj.ties import second_objective
from zoobj.track import Track

logger = logging.getLogger(__name__)

_RELEASE = 5  # steps between which freed memory may pile up: giving it back costs time too
_HOPELESS = 10  # steps in a row in which nothing could be scored


class ZOTrainer:
    """Tunes a model on an objective of a task.

    Args:
        model: a name, folder or hub id (then ``args.model_name_or_path``), or a causal language
            model of transformers or peft; every parameter that requires gradients is tuned.
        task: a name, file or Task; by default ``args.task``.
        objective: a name, ``file.py:function``, function or Objective; by default the task's own.
        tie_breaker: likewise, asked only about what ties.
        args: all other settings. Of a run that is continued or branched off, those left open are
            taken over.
        train_dataset, eval_dataset, test_dataset: rows instead of the task's own train,
            validation and test.
        processing_class: the tokenizer of a model given as an object.
        callbacks: transformers' TrainerCallbacks, or objects with some of their methods.
        peft_config: of an adapter to put on the model; it alone is tuned and saved.

    Raises:
        UserError: for settings that don't fit, before the model is loaded where possible.
    """

    def __init__(
        self,
        model: Any = None,
        task: str | Task | None = None,
        objective: Any = None,
        args: ZOConfig | None = None,
        train_dataset: Iterable[dict[str, Any]] | None = None,
        eval_dataset: Iterable[dict[str, Any]] | None = None,
        test_dataset: Iterable[dict[str, Any]] | None = None,
        processing_class: Any = None,
        callbacks: Sequence[Any] = (),
        peft_config: Any = None,
        tie_breaker: Any = None,
    ):
        args = args or ZOConfig()
        named = {"model_name_or_path": model, "task": task, "objective": objective}
        named |= {"tie_breaker": tie_breaker}
        told = {key: value for key, value in named.items() if isinstance(value, str)}
        self.args = taken_up(args.model_copy(update=told))
        self.callbacks = Callbacks(callbacks, self.args)
        datasets = (train_dataset, eval_dataset, test_dataset)
        self.task = make_task(self.args, None if isinstance(task, str) else task, datasets)
        wanted = self.args.objective if objective is None else objective
        self.objective = as_objective(self.task.objective if wanted is None else wanted)
        second = self.args.tie_breaker if tie_breaker is None else tie_breaker
        self.tie_breaker = second_objective(second, self.objective, hears_ties(self.args))
        self._name_objects(task, objective, tie_breaker)
        self.callbacks.belong_to(self.args, self.objective)
        given = None if isinstance(model, str) else model
        if given is not None:
            self.args.model_name_or_path = given.config.name_or_path or type(given).__name__
        self.model, self.tokenizer = make_model(self.args, given, processing_class, peft_config)
        asked = "tune" in self.args.model_fields_set
        self.args, self._why = chosen(self.args, self.model, given is not None)
        if asked and self._why:
            logger.info(self._why)  # else once all else is checked: an error is one line
            self._why = ""
        check_decay(self.args, self.model, given is not None)
        self.tuned = make_tuned(self.args, self.model, self.tokenizer)
        self.scorer = make_scorer(self.args, self.model, self.tokenizer, self.task)
        self.scorer.between = self._scored
        self.service = make_service(self.args, self.objective)
        self.callbacks.context = {"model": self.model, "processing_class": self.tokenizer}
        self.interrupts = Interrupts()
        self.track = Track(self.tuned, self.tokenizer, self.model)
        self.run: RunFolder
        self._phase = ""  # what is being scored, for the callbacks

    def _name_objects(self, task: Any, objective: Any, tie_breaker: Any) -> None:
        """What came as an object has its name in the settings, not another thing's."""
        if isinstance(task, Task):
            self.args.task = task.name
        if objective is not None and not isinstance(objective, str):
            self.args.objective = self.objective.name
        elif self.args.objective is None:
            self.args.objective = self.task.objective
        if self.tie_breaker is not None and not isinstance(tie_breaker, str | None):
            self.args.tie_breaker = self.tie_breaker.name

    @classmethod
    def from_log(
        cls, log: str, until: int | None = None, args: ZOConfig | None = None, **more: Any
    ) -> "ZOTrainer":
        """A trainer whose model stands where a run stood; ``train`` branches off there.

        Args:
            log: a run folder or its log.jsonl.
            until: how many of its steps; by default all.
            args: settings that differ from the run's, such as ``output_dir``.
            more: what else ``ZOTrainer`` takes, such as a model object that is the run's base.

        Raises:
            UserError: no such log or step, or a base model that is not the log's.
        """
        step = "" if until is None else f"@{until}"
        branch = (args or ZOConfig()).model_copy(update={"branch_from": f"{log}{step}"})
        trainer = cls(args=branch, **more)
        trainer._parent()  # whose base it has to be
        trainer.track.set_units(inherited_overlay(trainer.args), trainer.scorer, [])
        trainer.track.begin(inherited(trainer.args), trainer.args)
        return trainer

    # The run ----------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: bool | str | None = None) -> Result:
        """Tune, keep the weights that are best on validation, measure before and after on test.

        Args:
            resume_from_checkpoint: as in the settings, which it replaces.

        Raises:
            UserError: for bad input, before any training; later for a full disk, no memory or
                scores that can't be had, with the run saved.
            Interrupted: on Ctrl-C or SIGTERM; the run is saved and can be resumed.
        """
        if resume_from_checkpoint is not None:
            told = {"resume_from_checkpoint": resume_from_checkpoint}
            self.args = pointed_at(self.args.model_copy(update=told))
            self.callbacks.belong_to(self.args, self.objective)
        check_output_dir(self.args)
        self.max_steps, self.limit = budget(self.args)
        if self.args.push_to_hub:
            hub.check()
        self.data = load_splits(self.args, self.task, self.scorer)
        # What can't be is refused here and below: nothing is written yet.
        self.learning_rate = LearningRate(self.args, self.max_steps)
        self.ties = make_tie_breaker(self.args, self.tie_breaker)
        parts = (self.track, self.scorer, self.service, self.data["train"])
        self.probe = make_step(self.args, self.objective, *parts, ties=self.ties)
        self.method = self.probe.method
        self.track.set_units(inherited_overlay(self.args), self.scorer, self.data["train"])
        if hasattr(self, "run"):  # an earlier call's: back to where it began
            self.track.to(self.run.start, self.run)
        parent = self._parent()
        if not resumes(self.args):
            self._phase = ""
            beside = () if self.ties is None else (self.ties.service,)
            try_out(self.scorer, self.data["train"], self.service, *beside)
        if not (has_steps(self.args) or hasattr(self.track, "walk")):
            self.track.begin(parent.steps if parent else [], self.args)
        if self._why and not resumes(self.args):
            logger.info(self._why)
        warn_of_emulation(self.model)
        with RunFolder(self.args) as self.run, self.interrupts:
            result = self._guarded(parent)
            if self.args.push_to_hub:
                logger.info("uploaded to %s", hub.push(self.run.path, self.args))
            return result

    def _parent(self) -> Parent | None:
        """The run to branch off, if its steps are not in this run's log already."""
        if self.args.branch_from is None or has_steps(self.args):
            return None
        parent = parent_of(self.args)
        check_base(parent.run, self.args.model_name_or_path, self.track.base_checksum)
        check_overlay(parent, self.model)
        return parent

    def _begin(self, parent: Parent | None) -> None:
        """Make sure that it is the run that was begun, and stand where it begins."""
        fingerprints = {split: self.task.fingerprint(self.data[split]) for split in self.data}
        base = self.track.base_checksum
        this = identity(self.args, self.model, base, self.tokenizer, fingerprints)
        self.run.begin(this, self.args, parent)
        if not hasattr(self.track, "walk"):  # else it stands there already
            self.track.begin(self.run.steps[: self.run.start], self.args)
        elif self.track.at != self.run.start:
            raise UserError(
                f"{self.run.path} began at step {self.run.start}, the model of this trainer stands "
                f"at {self.track.at}: make a new ZOTrainer"
            )

    def _guarded(self, parent: Parent | None) -> Result:
        """Train; whatever stops it, nothing that was paid for is lost."""
        self._before: Outcome | None = None
        try:
            self._begin(parent)
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted by {self.interrupts.name} {self._where()}") from None
        try:
            return self._train()
        except KeyboardInterrupt:
            name = self.interrupts.name
            raise Interrupted(f"interrupted by {name} {self._cut_off(name)}") from None
        except StorageError as error:
            raise StorageError(f"{error}; {self._where()}") from error
        except UserError as error:
            branch = f"; --branch_from {self.run.path} goes on with other settings"
            by_gradients = self.track.gradient is not None  # such steps can't be branched off
            raise UserError(
                f"{error}; stopped {self._cut_off('error')}{'' if by_gradients else branch}"
            ) from error
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise UserError(
                f"out of memory: free some, or lower max_prompt_length; {self._where()}"
            ) from error
        finally:
            self.service.close()
            if self.ties is not None:
                self.ties.service.close()
            self.track.walk.goto({})  # whoever holds the model gets it back at no offset

    def _train(self) -> Result:
        self._tell_state()
        self.callbacks.control._new_training()
        self.callbacks.tell("on_train_begin")
        before = self._before = self._test(self.run.start, self._begun)
        self._resume()
        reason = self._loop()
        self._validate(len(self.run.steps))
        best = self._save_best()
        after = self._test(best)
        result = self._summary(before, after, best, self.run.finished(best) or reason)
        self.run.write_result(asdict(result))
        self.run.write_scoring(self.service.report())
        self._before = None  # whatever happens from here on, this result stays
        self.run.write_card(model_card(self.args, result, self.run))
        write_report(
            self.run.path / REPORT,
            self.args,
            result,
            self.run.steps,
            self.run.evaluations,
            before,
            after,
        )
        self.callbacks.tell("on_train_end")
        return result

    def _loop(self) -> str:
        """Steps, until a budget or a rule ends them; says which."""
        control = self.callbacks.control
        for step in range(len(self.run.steps), self.max_steps):
            digest = None
            if self._validation_due(step):
                self._validate(step)
                digest = checksum(self.tuned.named_parameters())
            if control.should_training_stop:
                return "callback"
            if reason := stop_reason(self.args, self.run, self.objective, self.method.evaluations):
                return reason
            control._new_step()
            self._step(step, digest)
            if control.should_evaluate:
                self._validate(step + 1)
            if control.should_save or (step + 1) % (self.args.save_steps or step + 2) == 0:
                self._checkpoint()
            if control.should_training_stop:
                return "callback"
        return self.limit

    def _step(self, step: int, digest: str | None) -> None:
        """Measure what the method asks for, move, and write the step down.

        ``digest`` is the checksum of the weights it starts from, where one was taken.
        """
        start, walked = time.perf_counter(), self.track.walk.seconds
        self.callbacks.tell("on_step_begin")
        self.method.learning_rate = self.learning_rate(step, self.run)
        self._phase = "train"
        probed = self.probe(self.run, step, digest)
        timings = {
            "seconds": round(time.perf_counter() - start, 4),
            "seconds_in_walk": round(self.track.walk.seconds - walked, 4),
        }
        with self.interrupts.held(), self.track.advance(probed.line):
            self.run.log_step(probed.line, timings)
        if (step + 1) % _RELEASE == 0:
            release_memory()
        self._report(probed)

    def _report(self, probed: Probed) -> None:
        """Tell the callbacks; stop where the objective fails again and again."""
        self._tell_state()
        line, outcomes = self.run.steps[-1], probed.outcomes
        if len(self.run.steps) % self.args.logging_steps == 0:
            logs = step_logs(line, self.objective.name, probed.groups, self.run.tie_rate)
            self.callbacks.log({**logs, "epoch": self.callbacks.state.epoch})
        self.callbacks.tell("on_step_end", samples=outcomes)
        lately = self.run.steps[-_HOPELESS:]
        if len(lately) == _HOPELESS and not any(line["n"] for line in lately):
            error = next((o.error for o in outcomes if o.error), "every score was None or NaN")
            raise UserError(f"nothing could be scored in {_HOPELESS} steps in a row: {error}")
        for outcome in outcomes:
            _warn(f"step {len(self.run.steps) - 1}", outcome)

    def _resume(self) -> None:
        """Take up an earlier session: its moves, what the method remembers, evaluations it lost."""
        run = self.run
        if len(run.steps) == run.start:
            return
        self.track.resume(run, self.args.resume_from_checkpoint)
        for step in filter(self._validation_due, range(run.start, len(run.steps))):
            if run.evaluation(step, "validation") is None:  # the metrics were cut short
                self.track.to(step, run)
                self._validate(step)
        self.track.to(len(run.steps), run)
        self.probe.resume(run.steps[-1])
        logger.info("resumed at step %d", len(run.steps))

    def _checkpoint(self) -> None:
        """Save the weights as they are, and what it takes to go on from them."""
        here = {len(self.run.steps), *(s for s, _ in checkpoint.checkpoints(self.run.path))}
        best = best_step(self.objective, self.run, among=here)
        self.track.save(self.run, self.callbacks.state, self.args.save_total_limit, best)
        self.callbacks.tell("on_save")

    # Scoring ----------------------------------------------------------------------------------

    def evaluate(self, split: str = "validation", limit: int | None = None) -> Outcome:
        """Score a split with the model as it is.

        Args:
            split: "train", "validation" or "test".
            limit: most examples; by default what ``max_eval_samples`` and the like say.
        """
        return self._score(self.task.examples(split, limit or limit_of(self.args, split)))

    def _score(self, examples: Sequence[Example], seed: int = 0) -> Outcome:
        batch = self.scorer(examples, self.objective.needs, seed)
        return self.service.judge(batch)

    @property
    def _begun(self) -> str:
        """What the result is compared with. New tokens change a model before they are tuned: then
        it is the base, else the tuned one at the start.
        """
        new = isinstance(self.tuned, Overlay) and bool(self.tuned.tokens)
        return "base" if new and not self.run.start else "tuned"

    def _test(self, step: int, of: str = "tuned") -> Outcome:
        """Score test with the weights before a step, unless that was paid for already."""
        key = f"{self.run.key(step)}/{of}"
        outcome = self.run.outcomes.get(key, self.data["test"])
        if outcome is None:
            with self.tuned.aside() if of == "base" else nullcontext():
                outcome = self._evaluate("test", step)
            self.run.outcomes.put(key, outcome, note=peak_memory(self.model.device))
        return outcome

    def _evaluate(self, split: str, step: int) -> Outcome:
        """Score a split at theta; written to the metrics."""
        start = time.perf_counter()
        self.track.walk.goto({})
        self._phase = split
        outcome = self._score(self.data[split])
        line = {
            "step": step,
            "split": split,
            "objective": self.objective.name,
            "value": jsonable(outcome.value),
            "n": len(outcome.batch) - outcome.failed,
            "failed": outcome.failed,
            **rewards(self.objective, [outcome]),
            **labels([outcome.batch]),
        }
        warn_of_collapse(line, self.run.evaluations)
        seconds = {"seconds": round(time.perf_counter() - start, 4)}
        if self.run.evaluation(step, split) is None:
            self.run.log_evaluation(line, seconds)
        self.callbacks.evaluated({**line, **seconds})
        _warn(split, outcome)
        return outcome

    def _validation_due(self, step: int) -> bool:
        return step % self.args.eval_steps == 0 or step == self.run.start

    def _validate(self, step: int) -> None:
        """Score validation before this step; one that is in the metrics isn't paid for again."""
        if self.run.evaluation(step, "validation") is None:
            self._evaluate("validation", step)
            self._tell_state()
        self.track.keep(self.run, self.callbacks.state, best_step(self.objective, self.run))
        self.track.walk.goto({})

    # Choosing and saving ----------------------------------------------------------------------

    def _save_best(self) -> int:
        """Walk back to the best weights and save them. Exact, since a move can be taken back."""
        best = best_step(self.objective, self.run)
        best = len(self.run.steps) if best is None else best
        self.track.to(best, self.run)
        with self.interrupts.held():
            self.run.save_model(self.tuned, self.tokenizer)
        self.callbacks.tell("on_save")
        return best

    def _cut_off(self, reason: str) -> str:
        """Save what there is, and say where."""
        try:
            self.run.write_scoring(self.service.report())
            best = self._save_best()
            if self._before is not None and self.run.finished(best) is None:
                result = self._summary(self._before, None, best, reason)
                self.run.write_result(asdict(result))
        except KeyboardInterrupt:  # once more: then the log has to do
            return self._where()
        return f"{self._where()}, the best weights so far are saved there"

    def _where(self) -> str:
        of = "" if self.max_steps == ENDLESS else f" of {self.max_steps}"
        return (
            f"at step {len(self.run.steps)}{of}: --resume_from_checkpoint {self.run.path} continues"
        )

    def _summary(self, before: Outcome, after: Outcome | None, best: int, reason: str) -> Result:
        key = f"{self.run.key(self.run.start)}/{self._begun}"
        return summarise(
            self.args,
            self.objective,
            self.run,
            before,
            after,
            peak_memory_bytes=peak_memory(self.model.device),
            inference_peak_memory_bytes=self.run.outcomes.note(key) or 0,
            best_step=best,
            stop_reason=reason,
        )

    # Small parts ------------------------------------------------------------------------------

    def _scored(self, examples: int) -> None:
        if self._phase:  # the try-out is no part of the run
            self.callbacks.tell("on_prediction_step", examples=examples, phase=self._phase)

    def _tell_state(self) -> None:
        """Bring transformers' TrainerState up to date."""
        state, step = self.callbacks.state, len(self.run.steps)
        state.global_step, state.max_steps = step, self.max_steps
        state.epoch = step * self.args.per_device_train_batch_size / len(self.data["train"])
        state.logging_steps, state.eval_steps = self.args.logging_steps, self.args.eval_steps
        best = best_step(self.objective, self.run)
        if best is not None:
            line = self.run.evaluation(best, "validation")
            state.best_global_step, state.best_metric = best, line["value"] if line else None


def _warn(place: str, outcome: Outcome) -> None:
    """Say what could not be scored there, and why."""
    for error in outcome.errors:
        logger.warning("%s: %s", place, error)
