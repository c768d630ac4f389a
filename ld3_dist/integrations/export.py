"""Schedules for other tools as files: plain lists, or a folder for `LD3Scheduler`.

    sigmas, timesteps, comfyui    one file of text each, see `schedule.export`
    diffusers                     a folder with the scheduler_config.json of an `LD3Scheduler`:
                                  nothing is lost
    comfyui-node                  a folder for ComfyUI's custom_nodes, see `comfyui`: nothing is
                                  lost

Everything that can be refused is refused before anything is written or returned to be printed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ..core.errors import InputError, unknown
from ..schedule import export as lists
from ..schedule.curves import of_one_nfe
from ..schedule.export import Exported
from ..schedule.file import Schedule, load_schedule
from ..store.outputs import check_output, write_output
from .comfyui import export_node

FOLDERS = ("diffusers", "comfyui-node")
FORMATS = (*lists.FORMATS, *FOLDERS)


def export(
    schedule: str | os.PathLike[str] | Schedule,
    form: str,
    out: str | os.PathLike[str] | None = None,
    pipeline: str | None = None,
    force: bool = False,
    nfe: int | None = None,
) -> Exported:
    """Give a schedule (path, URL or Schedule) to another tool.

    Args:
        form: one of FORMATS.
        out: file to write, for FOLDERS a folder; a list need not be written.
        pipeline: for diffusers, folder or hub id of the pipeline; if not given, the model that the
            schedule was learned on.
        force: replace existing files, but never the schedule that is read.
        nfe: evaluations at which a curve is read. The folder for diffusers may hold the whole
            curve, for any num_inference_steps.

    Returns the text of a list or the path of the folder, with sentences about what the format
    cannot carry.

    Raises InputError for an unknown format, for an output that cannot be written or exists, and for
    a schedule that the format cannot express; nothing is written then.
    """
    if form not in FORMATS:
        raise unknown("--format", form, FORMATS)
    kind = "folder" if form in FOLDERS else "file"
    if out is None and form in FOLDERS:
        raise InputError(f"--format {form} writes a folder; name it with --out")
    if pipeline is not None and form != "diffusers":
        raise InputError(
            f"--pipeline {pipeline}: does not apply to --format {form}; remove it, or use --format "
            "diffusers"
        )
    read = {} if isinstance(schedule, Schedule) else {"the command": schedule}
    place = None if out is None else check_output(out, kind, force, inputs=read)
    given = schedule if isinstance(schedule, Schedule) else load_schedule(schedule)
    with _named(schedule):
        if nfe is not None:
            given = given.at(nfe)
        elif form != "diffusers":
            of_one_nfe(given, "say which, such as --nfe 7")
    if form == "comfyui-node":
        assert place is not None
        name = "" if isinstance(schedule, Schedule) else PurePosixPath(os.fspath(schedule)).stem
        return Exported(str(export_node(given, place, name)))
    if form == "diffusers":
        assert place is not None
        return Exported(str(export_diffusers(given, place, pipeline)))
    found = lists.export_text(given, form)
    if place is not None:
        write_output(place, f"{found.text}\n")
    return found


@contextlib.contextmanager
def _named(schedule: str | os.PathLike[str] | Schedule) -> Iterator[None]:
    """Put the file of a schedule in front of the messages of a block."""
    try:
        yield
    except InputError as error:
        if isinstance(schedule, Schedule):
            raise
        raise InputError(f"{os.fspath(schedule)}: {error}") from error


def export_diffusers(schedule: Schedule, folder: Path, pipeline: str | None = None) -> Path:
    """Write the LD3Scheduler of a schedule into a folder; `LD3Scheduler.from_pretrained` reads it.

    Args:
        pipeline: folder or hub id of the pipeline; if not given, the model that the schedule was
            learned on.

    Raises InputError without the extra 'diffusers', without a pipeline, and for a pipeline that is
    not the schedule's.
    """
    name = pipeline or schedule.model.removeprefix("diffusers:")
    if pipeline is None and name == schedule.model:
        raise InputError(
            f"model {schedule.model!r} is no diffusers pipeline; name the one it is for with "
            "--pipeline"
        )
    try:
        import diffusers

        from .diffusers import LD3Scheduler
    except ImportError as error:
        raise InputError(
            "--format diffusers needs the extra 'diffusers': pip install 'ld3_dist[diffusers]'"
        ) from error
    try:
        config: Any = LD3Scheduler.load_config(name, subfolder="scheduler")
        named = config["_class_name"]
        kind = LD3Scheduler if named == LD3Scheduler.__name__ else getattr(diffusers, named)
        scheduler = kind.from_config(config)
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"pipeline {name!r}: its scheduler/scheduler_config.json cannot be read; "
            "give the folder of a whole pipeline with --pipeline"
        ) from error
    made = LD3Scheduler.from_schedule(schedule, scheduler)
    try:
        made.save_pretrained(folder)
    except OSError as error:
        raise InputError(
            f"--out {folder}: cannot be written ({error.strerror}); name another folder"
        ) from error
    return folder
