"""A set of files written together: all of them, each whole, or none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from moeplan.errors import PlanError

# A shell script is made runnable.
_RUNNABLE = (".sh", ".sbatch")


def write_together(directory: str | os.PathLike[str], files: Mapping[str, str], overwrite: bool = False) -> list[Path]:
    """Write ``files`` (name -> text, UTF-8) into ``directory``, which is made if need be.

    Every file is first written beside its place and then renamed into it; when one cannot be, those already renamed are
    taken back, and what they replaced is restored.

    Returns:
        The paths, in the order of ``files``.

    Raises:
        PlanError: A file is there and ``overwrite`` is false, or something cannot be written.
    """
    folder = Path(directory)
    targets = {folder / name: text for name, text in files.items()}
    try:
        there = [target for target in targets if os.path.lexists(target)]
        if there and not overwrite:
            raise PlanError(str(there[0]), "is already there", "pass --overwrite, or name another folder")
        odd = next((target for target in there if target.is_dir()), None)
        if odd is not None:
            raise PlanError(str(odd), "is a folder", "name another folder to write to")
        folder.mkdir(parents=True, exist_ok=True)
        # On the same file system as the targets, so that a rename is one step.
        with tempfile.TemporaryDirectory(prefix=".moeplan-", dir=folder) as scratch:
            _rename_all(targets, Path(scratch), overwrite)
    except (OSError, ValueError) as error:
        if isinstance(error, PlanError):
            raise
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise PlanError(str(folder), f"cannot be written to: {reason}", "name a place you may write to") from None
    return list(targets)


def _rename_all(targets: Mapping[Path, str], scratch: Path, overwrite: bool) -> None:
    mask = os.umask(0)
    os.umask(mask)
    written = []
    for target, text in targets.items():
        beside = scratch / target.name
        with beside.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        beside.chmod((0o777 if target.suffix in _RUNNABLE else 0o666) & ~mask)
        written.append((beside, target))
    placed: list[tuple[Path, Path | None]] = []
    try:
        for beside, target in written:
            replaced = None
            if overwrite and os.path.lexists(target):
                replaced = scratch / f"{target.name}.replaced"
                target.rename(replaced)
            placed.append((target, replaced))
            if os.path.lexists(target):
                raise PlanError(str(target), "is already there", "pass --overwrite, or name another folder")
            beside.rename(target)
    except BaseException:
        for target, replaced in reversed(placed):
            if not (scratch / target.name).exists():
                target.unlink(missing_ok=True)
            if replaced is not None:
                replaced.rename(target)
        raise
