"""What a run takes up: an earlier session of its own, or another run that it branches off."""

from pathlib import Path

from zoobj.config import ZOConfig, load_yaml, taken_over
from zoobj.errors import UserError
from zoobj.identity import Parent, recorded
from zoobj.log import ORIGIN, Line, Log
from zoobj.replay import header, read_log
from zoobj.run import CONFIG, LOG, METRICS, begun_at, has_steps, resumes, run_folder


def taken_up(args: ZOConfig) -> ZOConfig:
    """The settings; those left open as the run has them that is continued or branched off.

    Raises:
        UserError: no such run, or one in another folder than ``output_dir``.
    """
    args = pointed_at(args)
    if resumes(args):
        folder = run_folder(args)
        Log(folder / LOG, steps=True)  # damage shows before the model is loaded
        Log(folder / METRICS)
        earlier = load_yaml(folder / CONFIG)
        begun = earlier.get("branch_from")
        if args.branch_from is not None and not _same_branch(args, begun):
            raise UserError(
                f"--resume_from_checkpoint: {folder} branched off {begun}, not "
                f"{args.branch_from}: leave --branch_from out"
            )
        return taken_over(args, earlier, branch=False)
    if args.branch_from is None:
        return args
    log, _ = branch_point(args.branch_from)
    parent = parent_of(args)
    folder = log if log.is_dir() else log.parent
    if folder.resolve() == run_folder(args).resolve():
        raise UserError(f"--branch_from {log}: a branch needs an --output_dir of its own")
    earlier = load_yaml(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    earlier |= {"model_name_or_path": parent.run["base"], **parent.run["settings"]}
    exact = {"branch_from": f"{log.resolve()}@{len(parent.steps)}"}
    return taken_over(args.model_copy(update=exact), earlier, branch=True)


def _same_branch(args: ZOConfig, earlier: str | None) -> bool:
    """Whether the settings name the run and step that an earlier session branched off."""
    log, step = branch_point(args.branch_from or "")
    there, begun = branch_point(earlier or "")
    return log.resolve() == there and step in (None, begun)


def pointed_at(args: ZOConfig) -> ZOConfig:
    """The settings with the folder as ``output_dir`` that ``resume_from_checkpoint`` names.

    "auto" is yes where there is a run, else no: the same command begins a run and continues it.
    """
    pointed = args.resume_from_checkpoint
    if not isinstance(pointed, str):
        return args
    if pointed == "auto":
        there = (run_folder(args) / CONFIG).is_file()
        return args.model_copy(update={"resume_from_checkpoint": there})
    folder = Path(pointed).expanduser()
    if not pointed or not folder.is_dir():
        raise UserError(f"--resume_from_checkpoint {pointed!r}: no such folder")
    if folder.name.startswith("checkpoint-") and not (folder / CONFIG).is_file():
        folder = folder.parent
    told = "output_dir" in args.model_fields_set
    if told and folder.resolve() != run_folder(args).resolve():
        raise UserError(
            f"--resume_from_checkpoint {pointed} continues in {folder}, not in --output_dir "
            f"{args.output_dir}: to go on elsewhere, --branch_from {folder}"
        )
    return args.model_copy(update={"output_dir": str(folder)})


def branch_point(spec: str) -> tuple[Path, int | None]:
    """``run@STEP`` as the path of a run folder or log, and a step; None is its last."""
    path, at, step = spec.rpartition("@")
    if not at:
        return Path(spec).expanduser(), None
    if not step.isdecimal() or len(step) > 18:
        raise UserError(f"--branch_from {spec}: a step is needed after @, as in {path}@100")
    return Path(path).expanduser(), int(step)


def inherited(args: ZOConfig) -> list[Line]:
    """The steps that a branch began with: in its own log once it has begun, else its parent's."""
    if args.branch_from is None:
        return []
    if has_steps(args):
        return Log(run_folder(args) / LOG, steps=True).lines[: begun_at(args)]
    return parent_of(args).steps


def inherited_overlay(args: ZOConfig) -> Line | None:
    """The overlay of the run that is continued or branched off, if it has one."""
    if resumes(args):
        found: Line | None = recorded(run_folder(args) / CONFIG)["overlay"]
        return found
    return None if args.branch_from is None else parent_of(args).run["overlay"]


def parent_of(args: ZOConfig) -> Parent:
    """The run that the settings branch off.

    Raises:
        UserError: there is no such run or step.
    """
    path, step = branch_point(args.branch_from or "")
    steps, text = read_log(path, step)
    facts = {"run": str(path), "step": len(steps), "hash": steps[-1]["hash"] if steps else ORIGIN}
    return Parent(header(path), facts, steps, text)
