"""Hostile files: whatever is in them, no code of theirs runs, nothing outside their folder is
touched, memory stays bounded, and the error is one of ours.

    python -m tests.stress.hostile FOLDER FUZZED SEED

makes all cases and so many fuzzed files in one process, under an audit hook (PEP 578) and a limit
of address space, and prints a JSON object. A process of its own, because an audit hook cannot be
taken away.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from gistjax.errors import GistjaxError
from tests.stress.hostile_cases import PICKLE, SECRET, Case, all_cases, fuzz_cases
from tests.stress.hostile_files import KINDS

ROOT = Path(__file__).parents[2]
MEMORY_BYTES = 2**28
"""A file of at most a few MB may make the process grow by so much."""
ADDRESS_SPACE = 2**34
"""Beyond what the process has when the trials begin: an allocation of more than that fails."""

EXECUTION = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "subprocess.Popen",
    "pickle.find_class", "socket.connect", "socket.getaddrinfo", "ctypes.dlopen", 
)  # fmt: skip
TOUCHING = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink", "os.truncate")  # fmt: skip
INTERPRETER = tuple(
    {os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, str(ROOT), *sys.path) if p}
)


class Watch:
    """An audit hook that, while a folder is set, notes what should not happen."""

    def __init__(self) -> None:
        self.folder = ""
        self.seen: list[str] = []
        self._busy = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.folder or self._busy:
            return
        self._busy = True  # what is done here raises events too
        try:
            if self._forbidden(event, arguments):
                self.seen.append(f"{event}{str(arguments)[:200]}")
        finally:
            self._busy = False

    def _forbidden(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event in EXECUTION:
            return True
        if event == "exec":
            return not self._ours(arguments[0].co_filename)
        if event == "open":
            path, mode = arguments[0], str(arguments[1])
            writes = any(letter in mode for letter in "wax+") or bool(
                arguments[2] & 3 if arguments[1] is None else 0
            )
            return (
                not isinstance(path, int)
                and not self._inside(path)
                and (writes or not self._ours(path))
            )
        return event in TOUCHING and not self._inside(arguments[0])

    def _inside(self, path: Any) -> bool:
        return os.path.abspath(os.fsdecode(path)).startswith((self.folder, "/dev/null"))

    def _ours(self, path: Any) -> bool:
        """Code and files of the interpreter and its packages; Jinja compiles templates for its
        sandbox as <template>.
        """
        name = os.fsdecode(path)
        return name.startswith(
            ("<frozen", "<template>", "<unknown>", "<string>", "/proc/", "/sys/")
        ) or os.path.realpath(name).startswith(INTERPRETER)


def check_watch(watch: Watch, folder: Path) -> None:
    """Makes sure that the hook sees what it is there for."""
    os.chdir(folder)
    watch.folder = str(folder / "files")
    pickle.loads(PICKLE)
    (folder / "outside").write_text("x")
    exec(compile("1", "model.py", "exec"))
    watch.folder = ""
    seen = " ".join(watch.seen)
    for event in ("pickle.find_class", "os.system", "open", "exec"):
        assert event in seen, f"the audit hook does not see {event}"
    assert (folder / "pwned").exists()


def trial(case: Case, good: Path, folder: Path, watch: Watch) -> tuple[str, str]:
    """What came of a case, made of good files, and what is wrong with that, or nothing."""
    _, read = KINDS[case.kind]
    shutil.copytree(good, folder)
    case.break_it(folder)
    os.chdir(folder)
    reset_peak()
    before = memory("VmRSS")
    watch.seen.clear()
    watch.folder = str(folder)
    name = f"{case.kind}: {case.name}"
    try:
        read(folder)
        came, wrong = "read", "" if case.may_load else f"{name}: is read as if it were good"
    except GistjaxError as error:
        came, wrong = "refused", ""
        if SECRET in str(error) or len(str(error)) > 2_000 or str(folder) not in str(error):
            wrong = f"{name}: {str(error)[:600]}"
    except BaseException as error:
        came, wrong = "failed", f"{name}: {type(error).__name__}: {str(error)[:300]}"
    watch.folder = ""
    grown = memory("VmHWM") - before
    if watch.seen:
        wrong += f" {name}: {watch.seen[:3]}"
    if grown > MEMORY_BYTES:
        wrong += f" {name}: takes {grown >> 20} MiB"
    if any(folder.rglob("pwned")):
        wrong += f" {name}: has run code"
    return came, wrong


def memory(field: str) -> int:
    """Bytes, of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> None:
    """Starts VmHWM anew, where the kernel lets us."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """The command."""
    folder, number, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    watch = Watch()
    for kind, (make, read) in KINDS.items():  # all modules imported, and good files are read
        below = folder / kind
        below.mkdir()
        make(below)
        read(below)
    check_watch(watch, folder)
    limit = memory("VmSize") + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    failed, came = [], {"read": 0, "refused": 0, "failed": 0}
    cases = all_cases()
    for case in [*cases, *fuzz_cases(seed, number)]:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            result, wrong = trial(case, folder / case.kind, Path(name) / "files", watch)
            came[result] += 1
            failed += [wrong] if wrong else []
            os.chdir(folder)
    found = {
        "cases": len(cases),
        "fuzzed": number,
        "came": came,
        "failures": len(failed),
        "failed": failed,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
