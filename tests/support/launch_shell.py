"""Run a launch script with stand-ins for the programs it starts, and learn what it would have started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

_RECORDER = """#!{python}
import json, os, sys
open({record!r}, "w").write(json.dumps([sys.argv, dict(os.environ)]))
"""


def started(script: str, folder: Path, program: str = "torchrun", **variables: str) -> tuple[list[str], dict[str, str]]:
    """Run ``script`` under bash with a stand-in for ``program``: the words and the environment it was started with.

    Raises:
        subprocess.CalledProcessError: The script stopped before it started the program (``stderr`` says why).
    """
    programs = folder / "programs"
    programs.mkdir(parents=True, exist_ok=True)
    record = folder / "started.json"
    record.unlink(missing_ok=True)
    stand_in = programs / program
    stand_in.write_text(_RECORDER.format(python=sys.executable, record=str(record)))
    stand_in.chmod(0o755)
    path = folder / "launch.sh"
    path.write_text(script)
    environment = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder), **variables}
    subprocess.run(["bash", str(path)], env=environment, check=True, capture_output=True, text=True, cwd=folder)
    words, seen = json.loads(record.read_text())
    return words[1:], seen
