"""What to run on a GPU that is there for minutes only, in pieces that can be carried away.

    python -m benchmarks.gpu_plan STEP --data=FOLDER_OR_TAR --out=DIR [--minutes=9] [--scale=full]

    convolutions   which way of training many networks is the fastest, against PyTorch
    net3           figures 3 to 6 and 9 to 11 at the paper's settings
    net5           figures 2, 8, 1 and 7 at the paper's settings

A step ends in time: the run in training gets SIGTERM and writes a checkpoint. A step's output,
including checkpoints, is packed into DIR/STEP.tar.xz.00, .01, ... of at most 15 MB, even if the
step fails. With these parts in DIR, net3 and net5 continue where they stopped, on the same machine
or another. `convolutions` fits its measurements into the time and starts anew. docs/gpu.md has the
order.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

FIGURES = {"net3": "3,4,5,6,9,10,11", "net5": "2,8,1,7"}
STEPS = ("convolutions", *FIGURES)
PART_BYTES = 15_000_000
GRACE_S = 45  # to write a checkpoint and to pack


def main(argv: Sequence[str] | None = None) -> None:
    """Run one step; missing data or an unusable --out gives one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_plan", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--data", type=Path, help="a folder with train/ and test/, or a tar")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--scale", default="full", choices=("full", "small", "smoke"))
    options = parser.parse_args(argv)
    work = Path("runs/gpu_plan")
    folder = work / options.step
    until = time.monotonic() + 60 * options.minutes - GRACE_S
    if options.data is not None:
        options.data = options.data.expanduser()
    needs_data = options.step in FIGURES and options.scale != "smoke"
    if needs_data and (options.data is None or not options.data.exists()):
        sys.exit("error: --data: a folder of images or a tar of one is needed")
    options.out = options.out.expanduser()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"error: --out={options.out}: {error.strerror}")
    unpack(options.out, options.step, work)
    command = command_of(options.step, options.scale, options.data, folder, options.minutes)
    try:
        if not run(command, until):
            print(f"{options.step}: the time is over", flush=True)
    finally:
        pack(folder, options.out, options.step)


def command_of(step: str, scale: str, data: Path | None, folder: Path, minutes: float) -> list[str]:
    """Return the arguments for Python of a step."""
    if step == "convolutions":
        sizes = ["--members=2", "--batches=4"] if scale == "smoke" else []
        own = [f"--minutes={max(int(minutes) - 1, 1)}", f"--out={folder / 'table'}"]
        return ["-m", "benchmarks.accelerator", *sizes, *own]
    arguments = [f"--figures={FIGURES[step]}", f"--scale={scale}", f"--workdir={folder}"]
    if data is not None and scale != "smoke":
        arguments.append(f"--cifar10=folder:{images_of(data, folder.parent)}")
    return ["-m", "experiments.reproduce", *arguments]


def images_of(data: Path, work: Path) -> Path:
    """Return the folder with train/ and test/, unpacked from a tar if need be."""
    if data.is_dir():
        return data
    folder = work / f"images_of_{data.name}"
    if not folder.is_dir():
        temporary = work / "images.unpacking"
        shutil.rmtree(temporary, ignore_errors=True)
        with tarfile.open(data) as archive:
            archive.extractall(temporary, filter="data")
        temporary.rename(folder)
    found = [path.parent for path in (*folder.glob("train"), *folder.glob("*/train"))]
    if not found:
        raise SystemExit(f"error: --data={data}: it has no folder train/")
    return found[0]


def run(command: list[str], until: float) -> bool:
    """Run a command until it ends or the time is over; return whether it ended by itself.

    SIGTERM goes to the whole process group, as from a scheduler, and this waits for all of it.

    Raises:
      RuntimeError: the command failed.
    """
    process = subprocess.Popen([sys.executable, *command], start_new_session=True)
    try:
        process.wait(timeout=max(until - time.monotonic(), 1))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.killpg(process.pid, 0)
                time.sleep(0.2)
        return False
    if process.returncode:
        raise RuntimeError(f"python {' '.join(command)}: exit code {process.returncode}")
    return True


def pack(folder: Path, out: Path, step: str) -> None:
    """Pack a folder into numbered parts, which replace earlier ones."""
    whole = out / f"{step}.tar.xz"
    if not folder.exists():
        return
    with tarfile.open(whole, "w:xz", preset=1) as archive:
        archive.add(folder, step)
    with whole.open("rb") as stream:
        parts = list(enumerate(iter(lambda: stream.read(PART_BYTES), b"")))
    names = [out / f"{step}.tar.xz.{number:02d}" for number, _ in parts]
    for name, (_, part) in zip(names, parts, strict=True):
        name.write_bytes(part)
    for old in set(out.glob(f"{step}.tar.xz.*")) - set(names):
        old.unlink()
    whole.unlink()
    print(*sorted(out.glob(f"{step}.tar.xz.*")), sep="\n")


def unpack(out: Path, step: str, work: Path) -> None:
    """Unpack the parts of an earlier call, unless its folder is still there."""
    parts = sorted(out.glob(f"{step}.tar.xz.*"))
    if not parts or (work / step).exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    whole = work / f"{step}.tar.xz"
    with whole.open("wb") as stream:
        for part in parts:
            stream.write(part.read_bytes())
    with tarfile.open(whole) as archive:
        archive.extractall(work, filter="data")
    whole.unlink()


if __name__ == "__main__":
    main()
