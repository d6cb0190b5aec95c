"""The steps for a GPU that is there for minutes: in time, in parts, and resumed from the parts."""

import shutil
import subprocess
import sys
import tarfile
import time

import pytest

from benchmarks import gpu_plan


def test_parts_are_small_and_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_plan, "PART_BYTES", 1000)
    monkeypatch.chdir(tmp_path)
    work, out = tmp_path / "work", tmp_path / "out"
    (work / "net3").mkdir(parents=True)
    out.mkdir()
    content = bytes(range(256)) * 20
    (work / "net3" / "a").write_bytes(content + tmp_path.name.encode() * 50)
    (out / "net3.tar.xz.09").write_bytes(b"old")
    gpu_plan.pack(work / "net3", out, "net3")
    parts = sorted(path.name for path in out.iterdir())
    assert parts[0] == "net3.tar.xz.00" and "net3.tar.xz.09" not in parts
    assert all(path.stat().st_size <= 1000 for path in out.iterdir())
    shutil.rmtree(work)
    gpu_plan.unpack(out, "net3", work)
    assert (work / "net3" / "a").read_bytes().startswith(content)
    assert sorted(path.name for path in work.iterdir()) == ["net3"]


def test_a_command_is_stopped_in_time_with_its_children(tmp_path):
    """A child that needs a while to write its checkpoint is waited for."""
    done = tmp_path / "done"
    child = (
        "import signal, sys, time\n"
        "def stop(*_):\n"
        f"    time.sleep(1); open({str(done)!r}, 'w').close(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"open({str(tmp_path / 'started')!r}, 'w').close()\n"
        "time.sleep(60)\n"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert not gpu_plan.run(["-c", parent], time.monotonic() + 3)
    assert (tmp_path / "started").exists() and done.exists()
    assert gpu_plan.run(["-c", "pass"], time.monotonic() + 30)
    with pytest.raises(RuntimeError, match="exit code 3"):
        gpu_plan.run(["-c", "import sys; sys.exit(3)"], time.monotonic() + 30)


def test_what_a_failing_step_has_is_packed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "import os, sys; os.makedirs('runs/gpu_plan/net3'); open('runs/gpu_plan/net3/a', 'w')"
    monkeypatch.setattr(gpu_plan, "command_of", lambda *_: ["-c", f"{code}; sys.exit(1)"])
    with pytest.raises(RuntimeError, match="exit code 1"):
        gpu_plan.main(["net3", "--scale=smoke", "--out=out"])
    assert (tmp_path / "out" / "net3.tar.xz.00").exists()


@pytest.mark.parametrize("inside", ["", "images/"])
def test_images_from_a_tar(tmp_path, inside):
    """A tar of train/ and test/, or of a folder with them."""
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "1.png").write_bytes(b"image")
    data, work = tmp_path / "images.tar.xz", tmp_path / "work"
    with tarfile.open(data, "w:xz") as archive:
        archive.add(tmp_path / "train", f"{inside}train")
    work.mkdir()
    for _ in range(2):
        folder = gpu_plan.images_of(data, work)
        assert (folder / "train" / "cat" / "1.png").read_bytes() == b"image"
    assert gpu_plan.images_of(tmp_path, work) == tmp_path


def test_data_are_needed(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu_plan", "net3", f"--out={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: --data: a folder of images or a tar of one is needed\n"
