"""Where a study persists: nowhere, a journal file, SQLite, PostgreSQL or MySQL, all by Optuna's own storages."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from moeplan.errors import PlanError, nearest

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

_DATABASES = {"sqlite": "", "postgresql": "postgresql", "mysql": "mysql"}
_SCHEMES = ("journal", *_DATABASES)


def open_storage(reference: str | None) -> BaseStorage:
    """Open a storage.

    Args:
        reference: None for memory; ``journal:///path`` or a plain path for a journal file (one machine); or a database
            URL such as ``sqlite:///study.db``, ``postgresql://user@host/name`` or ``mysql+pymysql://...``.

    Raises:
        PlanError: The reference is not understood, its driver is not installed, or it cannot be opened.
    """
    from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if reference is None:
        return InMemoryStorage()
    match = re.match(r"([a-zA-Z0-9]+)(\+[a-zA-Z0-9_]+)?://", reference)
    if match is None or match.group(1) == "journal":
        path = Path(reference if match is None else reference.removeprefix("journal://"))
        return _open_journal(path, reference, lambda text: JournalStorage(JournalFileBackend(text)))
    dialect = match.group(1)
    if dialect not in _DATABASES:
        hint = nearest(dialect, _SCHEMES, f"use a path or one of {', '.join(_SCHEMES)}")
        raise PlanError("storage", f"unknown kind of storage {dialect!r}", hint)
    from sqlalchemy.exc import SQLAlchemyError

    # psycopg 3 is what the extra installs; SQLAlchemy's default for a bare postgresql:// is psycopg2.
    url = re.sub(r"^postgresql://", "postgresql+psycopg://", reference)
    url = re.sub(r"^mysql://", "mysql+pymysql://", url)
    try:
        return RDBStorage(url)
    except ImportError as error:
        extra = _DATABASES[dialect]
        raise PlanError("storage", f"the driver is missing ({error})", f"pip install 'moeplan[{extra}]'") from None
    except (SQLAlchemyError, RuntimeError, ValueError) as error:
        # A password in the URL must not reach a log.
        shown = re.sub(r"//[^@/]*@", "//...@", str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise PlanError("storage", f"cannot be opened: {shown}", "check the URL and that the server runs") from None


def _open_journal(path: Path, reference: str, build: Callable[[str], BaseStorage]) -> BaseStorage:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return build(str(path))
    except OSError as error:
        raise PlanError("storage", f"{reference} cannot be opened: {error.strerror}", "name another file") from None
