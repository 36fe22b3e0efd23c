#!/usr/bin/env python3
"""One file to start with: sets up `.venv` when that is needed, then runs the demo, the tests or the checks."""

import hashlib
import os
import shutil
import subprocess
import sys

NEEDED = (3, 11)
ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
HELP = """./go COMMAND: sets up .venv on the first call (some minutes), then

  ./go demo [ARGS]    pretrain on built-in images, evaluate, write a report: `unveil demo ARGS`
  ./go test [ARGS]    the tests: `pytest ARGS`; the proofs that take minutes: ./go test --slow
  ./go check          ruff and mypy

Every other command of unveil: .venv/bin/unveil"""


def main(words):
    if not words or words[0] not in ("demo", "test", "check"):
        print(HELP)
        return 0 if not words or words[0] in ("-h", "--help", "help") else 2
    find_python()
    os.chdir(ROOT)
    command, args = words[0], words[1:]
    set_up("dev" if command == "check" else "test")
    sys.stdout.flush()
    if command == "demo":
        os.execv(PYTHON, [PYTHON, "-m", "unveil", "demo", *args])
    if command == "test":
        if all(word.startswith("-") for word in args):  # the whole suite: a process of one thread for each core
            os.environ.setdefault("OMP_NUM_THREADS", "1")
            args = ["-n", str(min(8, num_cores())), "--dist", "loadfile", *args]
        os.execv(PYTHON, [PYTHON, "-m", "pytest", *args])
    checks = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"])
    return max(subprocess.call([PYTHON, "-m", *check]) for check in checks)


def num_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_python():
    """Go on in a Python that is new enough, or say which one is needed."""
    if sys.version_info >= NEEDED:
        return
    for minor in (13, 12, 11, 14):
        python = shutil.which(f"python3.{minor}")
        if python:
            os.execv(python, [python, os.path.abspath(__file__), *sys.argv[1:]])
    stop(f"unveil needs Python {NEEDED[0]}.{NEEDED[1]} or newer; this is {sys.version.split()[0]}")


def set_up(extra):
    """Make `.venv` what pyproject.toml and constraints.txt ask for; do nothing when it is."""
    import fcntl

    lock = os.open(ROOT, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # two calls at once: the second waits, then finds all done
    try:
        if not is_ready(extra):
            install(extra)
    finally:
        os.close(lock)


STAMP = os.path.join(VENV, "set-up")  # written last: a .venv without it is half made


def place():
    """The Python and the folder that a .venv is bound to."""
    return digest(sys.version, ROOT)


def requirements():
    """What is to be installed; another hash means that something changed."""
    texts = []
    for name in ("pyproject.toml", "constraints.txt"):
        with open(os.path.join(ROOT, name), encoding="utf-8") as file:
            texts.append(file.read())
    return digest(*texts)


def digest(*texts):
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def stamped():
    """The place, requirements and extra of the last finished set-up; three empty words without one."""
    try:
        with open(STAMP) as file:
            made_in, made_from, extra = file.read().split()
            return (made_in, made_from, extra) if os.path.exists(PYTHON) else ("", "", "")
    except (OSError, ValueError):
        return "", "", ""


def is_ready(extra):
    made_in, made_from, has = stamped()
    return made_in == place() and made_from == requirements() and has in (extra, "dev")  # dev holds test


def install(extra):
    if stamped()[0] != place():
        say(f"set-up: making .venv with Python {sys.version.split()[0]}")
        need_venv()
        run([sys.executable, "-m", "venv", "--clear", VENV])
    say("set-up: installing torch and the rest, a few minutes on the first call")
    pip = [PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    run([*pip, "-c", "constraints.txt", "-e", f".[{extra}]"])
    with open(STAMP, "w") as file:
        file.write(f"{place()} {requirements()} {extra}\n")
    say("set-up: done")


def need_venv():
    """Debian keeps a part of the standard library in a package of its own."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401

        return
    except ImportError:
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    if not shutil.which("apt-get"):
        stop("this Python has no venv module: install the package of your system that has it")
    if os.geteuid() != 0:
        stop(f"this Python has no venv module: sudo apt-get install {package}")
    say(f"set-up: installing {package}")
    run(["apt-get", "update", "-qq"])
    run(["apt-get", "install", "-y", "-qq", package])


def run(words):
    """A step of the set-up: silent when it succeeds, all it said when it fails."""
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        print(done.stdout.decode(errors="replace"), file=sys.stderr)
        stop(f"set-up failed at: {' '.join(words)}\nput it right and call ./go again")


def say(line):
    print(line, flush=True)


def stop(reason):
    sys.exit("error: " + reason)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("\nstopped; ./go goes on from here", file=sys.stderr)
        sys.exit(130)
