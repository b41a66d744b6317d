"""The command line: ``zoobj <verb> --flag value``. Exit codes: 0 done, 1 a bug or a failure at run
time, 2 the user can mend it (one line on stderr), 130 interrupted and saved.
"""

import argparse
import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from zoobj.errors import UserError, closest, did_you_mean

# Heavy modules are imported by the verbs that need them: --help answers at once.


class _Parser(argparse.ArgumentParser):
    """argparse, but an error is one line with the closest flag."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see: {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = action.metavar or action.dest
            raise UserError(f"unknown {what} {value!r}{did_you_mean(value, action.choices)}")

    def parse_exactly(self, argv: Sequence[str]) -> argparse.Namespace:
        known, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [flag for action in _actions(self, known) for flag in action.option_strings]
            hint = closest(unknown[0].partition("=")[0], flags) or "; see: --help"
            raise UserError(f"unknown argument {unknown[0]!r}{hint}")
        return known


def _actions(parser: argparse.ArgumentParser, known: argparse.Namespace) -> list[argparse.Action]:
    verbs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return verbs.choices[known.verb]._actions


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    from zoobj.interrupts import Interrupted

    try:
        args = _parser().parse_exactly(argv)
        _check_homes(vars(args))
        logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
        logging.getLogger("zoobj").setLevel(logging.INFO)
        verb: Callable[[argparse.Namespace], int] = args.run
        return verb(args)
    except UserError as error:
        print(f"zoobj: {error}", file=sys.stderr)
        return 2
    except Interrupted as error:
        print(f"zoobj: {error}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("zoobj: interrupted before a run had begun", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stderr.close()
        return 1
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.ENAMETOOLONG):
            raise
        print(f"zoobj: {str(error.filename)[:80]!r}: {error.strerror}", file=sys.stderr)
        return 2


def _parser() -> _Parser:
    parser = _Parser(
        prog="zoobj",
        allow_abbrev=False,
        description="Tune a language model directly on the score you report.",
    )
    from zoobj import __version__

    parser.add_argument("--version", action="version", version=f"zoobj {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=_Parser, metavar="verb")
    for name, run, text, flags in (
        ("train", _train, "tune a model", _train_flags),
        ("eval", _eval, "score a model", _eval_flags),
        ("compare", _compare, "methods and baselines at one budget, in one table", _compare_flags),
        ("replay", _replay, "from a base model and a log to weights", _replay_flags),
        ("log", _log, "check a run's log and show it", _log_flags),
        ("ls", _ls, "list tasks, objectives or methods", _ls_flags),
        ("validate", _validate, "check a task, an objective or a config", _validate_flags),
        ("env", _env, "versions and hardware, for bug reports", lambda parser: None),
    ):
        sub = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        flags(sub)
        sub.set_defaults(run=run)
    return parser


# Settings as flags ----------------------------------------------------------------------------


def _setting_flags(parser: argparse.ArgumentParser, names: Sequence[str] | None = None) -> None:
    """A flag for each field of ZOConfig; pydantic checks the values, so all arrive as text."""
    from zoobj.config import ZOConfig

    parser.add_argument("--config", metavar="FILE", help="YAML file of settings; flags win")
    for name, field in ZOConfig.model_fields.items():
        if names is not None and name not in names:
            continue
        default = "" if field.default is None else f" [{field.default}]"
        alone = field.annotation in (bool, bool | str)  # "--push_to_hub" says true by itself
        parser.add_argument(
            f"--{name}",
            default=argparse.SUPPRESS,
            help=f"{field.description}{default}".replace("%", "%%"),
            nargs="?" if alone else None,
            const="true" if alone else None,
            metavar=name.upper().rsplit("_", 1)[-1],
        )


def _settings(args: argparse.Namespace) -> Any:
    """ZOConfig from the YAML file, then the flags."""
    from zoobj.config import ZOConfig, load_yaml

    told = load_yaml(args.config) if args.config else {}
    _check_homes(told)
    flags = {name: value for name, value in vars(args).items() if name in ZOConfig.model_fields}
    return ZOConfig(**{**told, **flags})


# Verbs ----------------------------------------------------------------------------------------


def _train_flags(parser: argparse.ArgumentParser) -> None:
    _setting_flags(parser)


def _train(args: argparse.Namespace) -> int:
    settings = _settings(args)
    _check_names(settings)
    _quiet()
    from zoobj.lineage import pointed_at
    from zoobj.progress import ProgressBar
    from zoobj.run import check_output_dir
    from zoobj.trainer import ZOTrainer

    check_output_dir(pointed_at(settings))  # before the wait for the model
    bars = [] if settings.disable_tqdm else [ProgressBar()]
    trainer = ZOTrainer(args=settings, callbacks=bars)
    try:
        result = trainer.train()
    finally:
        for bar in bars:
            bar.close()
    print(result)
    print(f"saved in {trainer.args.output_dir}")
    return 0


_EVAL = (
    "model_name_or_path",
    "gguf_file",
    "dtype",
    "device_map",
    "trust_remote_code",
    "task",
    "train_file",
    "validation_file",
    "test_file",
    "num_fewshot",
    "max_new_tokens",
    "max_prompt_length",
    "objective",
    "do_sample",
    "temperature",
    "top_p",
    "on_error",
    "max_failed",
    "reward_workers",
    "reward_timeout",
    "reward_retries",
    "reward_memory",
    "reward_cache",
    "per_device_eval_batch_size",
    "seed",
)


def _eval_flags(parser: argparse.ArgumentParser) -> None:
    _setting_flags(parser, _EVAL)
    parser.add_argument("--split", default="test", help="train, validation or test [test]")
    parser.add_argument("--limit", help="only the first N examples")
    parser.add_argument("--output", metavar="FILE", help="also write the result as JSON")


def _eval(args: argparse.Namespace) -> int:
    settings, limit = _settings(args), _count("--limit", args.limit)
    _check_names(settings)
    _quiet()
    from zoobj.evaluation import evaluate

    result = evaluate(settings, args.split, limit, args.output)
    print(result)
    return 0


def _compare_flags(parser: argparse.ArgumentParser) -> None:
    _setting_flags(parser)
    parser.add_argument("--methods", default="all", help="names by commas, or all [all]")
    parser.add_argument("--objectives", help="specs by spaces [the task's own]")
    parser.add_argument("--seeds", help="runs of each method, with seeds 1 to N [3]")
    parser.add_argument(
        "--baselines",
        default="zero-shot,in-context,linear-probe",
        help="by commas, or none [zero-shot,in-context,linear-probe]",
    )
    parser.add_argument("--icl_examples", help="in the prompts of the baseline in-context [4]")


def _compare(args: argparse.Namespace) -> int:
    settings = _settings(args)
    _check_names(settings)
    _quiet()
    from zoobj.assemble import make_task
    from zoobj.compare import compare

    objectives = (args.objectives or settings.objective or make_task(settings).objective).split()
    baselines = [] if args.baselines == "none" else args.baselines.split(",")
    seeds = _count("--seeds", args.seeds) or 3
    shots = _count("--icl_examples", args.icl_examples) or 4
    print(compare(settings, args.methods.split(","), objectives, seeds, shots, baselines))
    print(f"saved in {settings.output_dir}")
    return 0


_MODEL = ("model_name_or_path", "gguf_file", "dtype", "device_map", "trust_remote_code")


def _replay_flags(parser: argparse.ArgumentParser) -> None:
    _setting_flags(parser, _MODEL)
    parser.add_argument(
        "--log",
        required=True,
        action="append",
        metavar="FILE",
        help="log or run folder; several: their mean",
    )
    parser.add_argument(
        "--until", metavar="STEP", help="so many steps; -N: all but the last N [all]"
    )
    parser.add_argument(
        "--average", metavar="N", help="mean of the weights after the last N steps [1]"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder for the model")


def _replay(args: argparse.Namespace) -> int:
    settings = _settings(args)
    told = settings.model_dump(include=settings.model_fields_set & {*_MODEL})
    until = None if args.until is None else _whole("--until", args.until)
    last = _count("--average", args.average) or 1
    _quiet()
    from zoobj.replay import replay

    print(replay(args.log, args.output, until, last, told))
    return 0


def _log_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="RUN", help="run folder or log.jsonl")
    parser.add_argument("--lines", metavar="N", help="lines shown of head and tail [3]")


def _log(args: argparse.Namespace) -> int:
    from zoobj.show import show

    print(show(args.path, _count("--lines", args.lines) or 3))
    return 0


def _ls_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["tasks", "objectives", "methods"])


def _ls(args: argparse.Namespace) -> int:
    from zoobj.registry import catalogue, find

    kind = args.what.removesuffix("s")
    for name in sorted(catalogue(kind)):
        found = find(kind, name)
        summary = (found.thing.__doc__ or "").strip().partition("\n\n")[0]
        print(f"{name:<18} {' '.join(summary.split())}  [{found.where}]")
    return 0


def _validate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=["objective"], help="check this alone")
    parser.add_argument("spec", nargs="?", metavar="SPEC", help="name or file.py:function")
    _setting_flags(parser)


def _validate(args: argparse.Namespace) -> int:
    settings = _settings(args)
    if args.what and not args.spec:
        raise UserError("zoobj validate objective SPEC: say which, as in rewards.py:brief")
    _quiet()
    from zoobj.check import check_objective
    from zoobj.evaluation import validate

    for line in check_objective(args.spec, settings) if args.what else validate(settings):
        print(line)
    return 0


def _env(args: argparse.Namespace) -> int:
    import os
    import platform

    import torch

    from zoobj.environment import git_commit, versions

    for name, value in versions().items():
        print(f"{name:<14} {value}")
    print(f"{'commit':<14} {git_commit() or 'installed'}")
    print(f"{'platform':<14} {platform.platform()}")
    print(f"{'cpu':<14} {os.cpu_count()} cores, {torch.get_num_threads()} threads in torch")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"{'gpu':<14} {', '.join(gpus) or 'none'}")
    return 0


def _check_names(settings: Any) -> None:
    """A misspelt name is told at once, before the seconds it takes to import transformers."""
    from zoobj.registry import find, specs

    find("task", settings.task)
    for spec in specs(settings.objective):
        find("objective", spec)
    find("method", settings.method)


def _check_homes(told: Mapping[str, Any]) -> None:
    """``~name`` of a user who isn't there: pathlib would not say which path it is."""
    for name, value in told.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text.startswith("~") and os.path.expanduser(text) == text:
                raise UserError(f"{name} {text!r}: there is no such user")


def _whole(flag: str, text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise UserError(f"{flag} {text!r}: a whole number is needed")
    return int(text)


def _count(flag: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < 1:
        raise UserError(f"{flag} {text!r}: a whole number of at least 1 is needed")
    return int(text)


def _quiet() -> None:
    """Silence other libraries: their progress bars and advice don't belong among our few lines."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
