"""Breaks the code in one place at a time and runs the tests that must notice: `python tests/mutate.py [WORD ...]`.

Words choose the mutants whose name holds one of them. The code is broken in a copy. The exit status is 1 where a mutant
survives its tests, or where the code that it changes is not there any more. A fixed list instead of a tool that makes
mutants by the hundred: each of these stands for a fault that loses or falsifies work, and takes seconds to a minute.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutant:
    """A piece of code of a file in `src/unveil`, what it becomes, and the tests that must fail then."""

    name: str
    file: str
    code: str
    broken: str
    tests: str


MUTANTS = (
    Mutant("no fsync", "runs/atomic.py", "os.fsync(descriptor)", "pass", "test_atomic.py"),
    Mutant(
        "rename before the fsync",
        "runs/atomic.py",
        "        sync(temporary)\n        temporary.replace(path)\n",
        "        temporary.replace(path)\n        sync(path)\n",
        "test_atomic.py",
    ),
    Mutant("no fsync of a folder", "runs/atomic.py", "        sync(path.parent)\n", "", "test_atomic.py"),
    Mutant("checkpoint: no fsync of its files", "runs/checkpoint.py", "            sync(file)\n", "", "test_atomic.py"),
    Mutant("checkpoint: no fsync of its folder", "runs/checkpoint.py", "        sync(folder)\n", "", "test_atomic.py"),
    Mutant(
        "run.json in place",
        "runs/folder.py",
        'write_json(self.path / "run.json", content)',
        '(self.path / "run.json").write_text(json.dumps(content))',
        "test_atomic.py",
    ),
    Mutant(
        "seconds are lost",
        "training/loop.py",
        'self.seconds = resume.state["seconds"]',
        "self.seconds = 0.0",
        "test_training.py -k sessions",
    ),
    Mutant(
        "skipped counts are lost",
        "training/ladder.py",
        'state.get("skipped", 0)',
        "0",
        "test_training.py -k sessions",
    ),
    Mutant(
        "skipped updates are made",
        "training/trainer.py",
        "self.optimizer.found_inf = skipped.float()",
        "self.optimizer.found_inf = 0 * skipped.float()",
        "test_training.py -k NotFinite",
    ),
    Mutant(
        "an epoch begins again",
        "training/loop.py",
        "self.loader.batches(epoch, step - epoch * per_epoch)",
        "self.loader.batches(epoch, 0)",
        "test_pretrain_stopped.py -k stops0",
    ),
    Mutant(
        "moments are lost",
        "training/loop.py",
        "trainer.restore(resume.optimizer)",
        "pass",
        "test_pretrain_stopped.py -k stops0",
    ),
    Mutant(
        "checksums are not compared",
        "runs/checkpoint_state.py",
        'if checksum(path / name) != state["checksums"][name]:',
        "if False:",
        "test_checkpoint.py",
    ),
    Mutant(
        "damaged weights are passed over",
        "runs/checkpoint.py",
        "if complaints and warn:",
        "if False:",
        "test_damaged_checkpoints.py -k load",
    ),
    Mutant(
        "results of other weights count",
        "reporting/run_record.py",
        "return all(self.weights.get(name, value) == value for name, value in known.items())",
        "return True",
        "test_damaged_checkpoints.py -k other_weights",
    ),
    Mutant(
        "checkpoints that are gone are not missed",
        "runs/folder.py",
        '    if step:\n        raise ValueError(f"{path} was trained to step',
        '    if False:\n        raise ValueError(f"{path} was trained to step',
        "test_run_folders.py -k gone",
    ),
    Mutant(
        "a folder that moves is not noticed",
        "runs/folder.py",
        "if self._place is not None and",
        "if False and",
        "test_run_folders.py -k moved",
    ),
    Mutant(
        "the umask is not followed",
        "runs/checkpoint.py",
        "        file.chmod(mode)\n",
        "",
        "test_run_folders.py -k umask",
    ),
    Mutant(
        "gradients are not averaged",
        "training/distributed.py",
        "return nullcontext() if now or self.size == 1 else model.no_sync()",
        "return nullcontext() if self.size == 1 else model.no_sync()",
        "test_distributed.py -k modalities_are_missing",
    ),
    Mutant(
        "the demo's ladder has no teacher",
        "experiments/demo.py",
        '"teacher": str(folder / "runs" / "crossmae"), ',
        "",
        "test_demo.py -k ladder",
    ),
    Mutant(
        "the rate is not halved", "training/ladder.py", "0.5 ** sum", "1.0 ** sum", "test_ladder.py -k twenty_refused"
    ),
    Mutant(
        "back to a step after the trouble",
        "training/ladder.py",
        "if step < before and",
        "if",
        "test_ladder.py -k stays",
    ),
    Mutant(
        "what is left of a return stays",
        "training/ladder.py",
        '        _remove_later(run.path, returns[-1]["to"], len(returns))\n',
        "        pass\n",
        "test_ladder.py -k dies",
    ),
    Mutant(
        "spikes are compared with",
        "training/health.py",
        "self.since, self.away = step, [x]",
        "self._append(x)",
        "test_health.py",
    ),
    Mutant(
        "health forgets", "training/ladder.py", 'Health(state.get("health"))', "Health()", "test_ladder.py -k same_bits"
    ),
)


def survives(mutant: Mutant, folder: Path) -> str | None:
    """Why a mutant is no good, or None where its tests fail."""
    package = folder / "unveil"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "src" / "unveil", package, ignore=shutil.ignore_patterns("__pycache__"))
    file = package / mutant.file
    code = file.read_text()
    if code.count(mutant.code) != 1:
        return f"its code is {code.count(mutant.code)} times in {mutant.file}"
    file.write_text(code.replace(mutant.code, mutant.broken))
    first, *rest = mutant.tests.split()
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(ROOT / "tests" / first), *rest]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 1:
        return None
    return "its tests pass" if done.returncode == 0 else f"pytest ended with {done.returncode}: {done.stdout[-300:]}"


def main(words: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        for mutant in chosen:
            why = survives(mutant, Path(folder))
            survivors += why is not None
            print(f"{'killed' if why is None else 'SURVIVES'}  {mutant.name}{f': {why}' if why else ''}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants are killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
