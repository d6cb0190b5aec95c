"""States and locks of runs in a bucket: a state to resume from is always there."""

# ruff: noqa: F811 - tests name the fixtures that are imported

import json
import shutil
import time

import pytest

from normjax.training import bucket
from normjax.training.bucket import fetch_run, mirrored, open_mirror
from tests.helpers.buckets import (  # noqa: F401 - the fixtures
    ADDRESS,
    Failing,
    content,
    empty,
    fill,
    names,
    on_machine,
    put,
    read,
    s3,
    s3fs,
    server,
)

# --- states

OLD = {
    "run.json": '{"finished": false}',
    "metrics.jsonl": "1",
    "checkpoints/progress/000/1/d/x": "one",
}
NEW = {
    "run.json": '{"finished": true}',
    "metrics.jsonl": "1 2",
    "checkpoints/progress/000/2/d/y": "two",
}


def test_a_state_is_sent_and_fetched(s3, on_machine):
    with mirrored(ADDRESS, False) as mirror:
        assert names(s3) == {"lock.json"}
        for files in (OLD, NEW):
            fill(mirror.run_dir, files | {".lock": "", ".run.json.7.tmp": "half"})
            mirror.push()
            assert names(s3) == {*files, "lock.json", "manifest.json"}
    assert names(s3) == {*NEW, "manifest.json"}
    on_machine("second")
    assert read(fetch_run(ADDRESS)) == NEW
    with mirrored(ADDRESS + "/", True) as mirror:
        assert read(mirror.run_dir) == NEW
        fill(mirror.run_dir, {"run.json": "changed", "unlisted/file": ""})
    with mirrored(ADDRESS, True) as mirror:
        assert read(mirror.run_dir) == NEW and not (mirror.run_dir / "unlisted").exists()
    with (
        pytest.raises(ValueError, match="already holds a run: give another folder, or --resume"),
        mirrored(ADDRESS, False),
    ):
        pass


@pytest.mark.parametrize("changes", range(5))
def test_whenever_sending_ends_a_state_is_there(s3, on_machine, capsys, changes):
    """Three files are sent, the manifest, one file is removed."""
    with mirrored(ADDRESS, False) as mirror:
        fill(mirror.run_dir, OLD)
        mirror.push()
        fill(mirror.run_dir, NEW)
        mirror.fs = Failing(mirror.fs, changes)
        with pytest.raises(OSError, match=f"^{ADDRESS}: the network is down") as caught:
            mirror.push()
        assert changes == 4 or f"is in {mirror.run_dir}, and --resume sends it" in str(caught.value)
    on_machine("second")
    expected = NEW if changes == 4 else OLD
    copy = read(fetch_run(ADDRESS))
    assert copy.keys() == expected.keys()
    for name, text in copy.items():  # what keeps its name may be new already
        assert text == expected[name] or text == NEW[name]
    on_machine("first")
    with mirrored(ADDRESS, True) as mirror:
        assert read(mirror.run_dir) == NEW
        assert names(s3) == {*NEW, "lock.json", "manifest.json"}
    assert ("sending what is not in" in capsys.readouterr().err) == (changes < 4)


@pytest.mark.parametrize(
    ("event", "reason"),
    [("other", "another process has gone on with this run"), ("changed", "it has been changed")],
)
def test_what_cannot_be_sent_any_more_is_moved_aside(s3, on_machine, capsys, event, reason):
    with mirrored(ADDRESS, False) as mirror:
        fill(mirror.run_dir, OLD)
        mirror.push()
        fill(mirror.run_dir, NEW)
        fs, mirror.fs = mirror.fs, Failing(mirror.fs, 0)
        with pytest.raises(OSError):
            mirror.push()
        mirror.fs = fs
    expected, unsent = OLD, NEW
    if event == "changed":
        (mirror.run_dir / "run.json").write_text("damaged")
        unsent = NEW | {"run.json": "damaged"}
    else:
        on_machine("second")
        expected = OLD | {"more": ""}
        with mirrored(ADDRESS, True) as other:
            fill(other.run_dir, expected)
            other.push()
        on_machine("first")
    with mirrored(ADDRESS, True) as mirror:
        assert read(mirror.run_dir) == expected
    (aside,) = mirror.home.glob("run.unsent_*")
    assert read(aside) == unsent
    line = f"{aside}: what is not in {ADDRESS} was moved here: {reason}\n"
    assert capsys.readouterr().err == line


def test_what_was_never_sent_is_no_new_run(s3):
    with mirrored(ADDRESS, False) as mirror:
        fill(mirror.run_dir, OLD)
        fs, mirror.fs = mirror.fs, Failing(mirror.fs, 0)
        with pytest.raises(OSError):
            mirror.push()
        mirror.fs = fs
    with pytest.raises(ValueError, match="already holds a run"), mirrored(ADDRESS, False):
        pass
    with mirrored(ADDRESS, True) as mirror:
        assert read(mirror.run_dir) == OLD


@pytest.mark.parametrize("is_unsent", [False, True])
def test_the_last_copy_of_a_run_is_not_removed(s3, capsys, is_unsent):
    with mirrored(ADDRESS, False) as mirror:
        fill(mirror.run_dir, OLD)
        mirror.push()
        if is_unsent:
            fill(mirror.run_dir, NEW)
            fs, mirror.fs = mirror.fs, Failing(mirror.fs, 0)
            with pytest.raises(OSError):
                mirror.push()
            mirror.fs = fs
    empty(s3)
    for resume in (False, True):
        with pytest.raises(ValueError, match="holds no run any more"), mirrored(ADDRESS, resume):
            pass
    assert read(mirror.run_dir) == (NEW if is_unsent else OLD) and names(s3) == set()
    mirror.run_dir.rename(mirror.home / "moved")
    with mirrored(ADDRESS, False):
        pass
    assert capsys.readouterr().err == ""


class Overtaken:
    """A file system that stalls before it sends files, so that something happens first."""

    def __init__(self, fs, event):
        self.fs, self.event = fs, event

    def __getattr__(self, name):
        return getattr(self.fs, name)

    def put(self, *args):
        self.event()
        self.fs.put(*args)


@pytest.mark.parametrize("is_locked", [False, True])
def test_who_was_overtaken_while_sending_writes_no_manifest(s3, on_machine, is_locked):
    """The other one has ended; its manifest alone must do, too."""

    def overtake():
        on_machine("second")
        with mirrored(ADDRESS, True) as second:
            fill(second.run_dir, NEW)
            second.push()
        if is_locked:
            put(s3, "lock.json", json.dumps({"owner": mirror.owner}))

    with mirrored(ADDRESS, False) as mirror:
        fill(mirror.run_dir, OLD)
        mirror.push()
        fill(mirror.run_dir, OLD | {"checkpoints/progress/000/3/d/z": "three"})
        mirror.fs = Overtaken(mirror.fs, overtake)
        with pytest.raises(OSError, match=r"taken this run over; .* is in [^,]*$"):
            mirror.push()
        assert mirror.is_lost
    assert read(fetch_run(ADDRESS)) == NEW
    with mirrored(ADDRESS, True):
        assert names(s3) == {*NEW, "lock.json", "manifest.json"}


def test_two_stores_may_have_the_same_names(monkeypatch):
    import fsspec

    def home():
        s3fs.S3FileSystem.clear_instance_cache()
        return open_mirror(ADDRESS, "run").home

    homes = [home()]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://other")
    homes += [home()]
    monkeypatch.setitem(fsspec.config.conf, "s3", {"client_kwargs": {"endpoint_url": "http://own"}})
    homes += [home()]
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": "http://third"})
    homes += [home()]
    assert len(set(homes)) == 4 and home() == homes[-1]


@pytest.mark.parametrize("is_same", [False, True])
def test_a_copy_keeps_nothing_of_an_earlier_state(s3, is_same):
    """What an analysis wrote stays if it was of this run."""
    old = {"run.json": '{"finished": false, "seed": 1}', "checkpoints/members/000_loss=0.1.npz": ""}
    with mirrored(ADDRESS, False) as mirror:
        fill(mirror.run_dir, old)
        mirror.push()
    folder = fetch_run(ADDRESS)
    (folder / "analysis.csv").write_text("")
    new = {"run.json": f'{{"finished": true, "seed": {1 if is_same else 2}}}', "results.csv": "1"}
    if not is_same:
        empty(s3)
        fill(mirror.run_dir, {})
    with mirrored(ADDRESS, is_same) as mirror:
        fill(mirror.run_dir, new)
        mirror.push()
    assert read(fetch_run(ADDRESS)) == new | ({"analysis.csv": ""} if is_same else {})


@pytest.mark.parametrize("is_finished", [False, True])
def test_a_damaged_file_of_a_finished_run_is_refused(s3, on_machine, is_finished):
    files = NEW if is_finished else OLD
    with mirrored(ADDRESS, False) as mirror:
        fill(mirror.run_dir, files)
        mirror.push()
    put(s3, "metrics.jsonl", "1 2 3")
    on_machine("second")
    if not is_finished:
        assert read(fetch_run(ADDRESS)) == OLD | {"metrics.jsonl": "1 2 3"}
        return
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"^{ADDRESS}/metrics\.jsonl: damaged"):
            fetch_run(ADDRESS)
        with pytest.raises(ValueError, match=r"metrics\.jsonl: damaged"), mirrored(ADDRESS, True):
            pass


def test_what_the_manifest_does_not_list_does_not_count(s3, on_machine):
    with mirrored(ADDRESS, False) as mirror:
        fill(mirror.run_dir, OLD)
        mirror.push()
    put(s3, "checkpoints/progress/000/9/d/x", "half of a checkpoint")
    put(s3, "notes.txt", "of the user")
    on_machine("second")
    with mirrored(ADDRESS, True) as mirror:
        assert read(mirror.run_dir) == OLD
    assert names(s3) == {*OLD, "manifest.json", "notes.txt"}
    put(s3, "manifest.json", json.dumps({"id": "x", "files": {"../../escaped": "0"}}))
    with pytest.raises(ValueError, match=r"escaped is outside of the run"), mirrored(ADDRESS, True):
        pass
    empty(s3)
    put(s3, "results.csv", "of somebody")
    with (
        pytest.raises(ValueError, match=r"other results \(manifest.json is"),
        mirrored(ADDRESS, True),
    ):
        pass
    with pytest.raises(FileNotFoundError, match="no run here"):
        fetch_run(ADDRESS)


# --- the lock


def test_a_second_process_is_refused(s3, on_machine, monkeypatch):
    monkeypatch.setattr(bucket, "RENEW_S", 0.05)
    with mirrored(ADDRESS, False):
        with (
            pytest.raises(ValueError, match=r"is in use by another process$"),
            mirrored(ADDRESS, True),
        ):
            pass
        on_machine("second")
        with (
            pytest.raises(ValueError, match="if that was killed, --resume takes over"),
            mirrored(ADDRESS, False),
        ):
            pass
        with (
            pytest.raises(ValueError, match=r"is in use by another process$"),
            mirrored(ADDRESS, True),
        ):
            pass
    assert names(s3) == set()
    with mirrored(ADDRESS, True):
        pass


def test_a_lock_without_a_sign_of_life_is_taken_over(s3, on_machine, capsys, monkeypatch):
    holding = mirrored(ADDRESS, False)
    mirror = holding.__enter__()  # it gives no sign of life for 30 s
    on_machine("second")
    with mirrored(ADDRESS, True) as second:
        assert "waiting 0.5 s for a sign of life" in capsys.readouterr().err
        fill(mirror.run_dir, OLD)
        with pytest.raises(OSError, match="another process has taken this run over"):
            mirror.push()
        assert mirror.is_lost and names(s3) == {"lock.json"}
        fill(second.run_dir, NEW)
        second.push()
    assert names(s3) == {*NEW, "manifest.json"}


def test_a_lock_of_this_folder_is_taken_over_at_once(s3, on_machine, tmp_path, capsys):
    """Its copy does so, too, and then the first one hears of it: each has an id of its own."""
    with mirrored(ADDRESS, False) as mirror:
        killed = json.loads(content(s3, "lock.json"))
    put(s3, "lock.json", json.dumps(killed))
    holding = mirrored(ADDRESS, False)
    mirror = holding.__enter__()
    lock = json.loads(content(s3, "lock.json"))
    assert lock["owner"] == mirror.owner != killed["owner"] and lock["time"] > killed["time"]
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    on_machine("copy")
    with mirrored(ADDRESS, False) as copy:
        fill(mirror.run_dir, OLD)
        with pytest.raises(OSError, match="another process has taken this run over"):
            mirror.push()
        fill(copy.run_dir, NEW)
        copy.push()
    holding.__exit__(None, None, None)
    assert names(s3) == {*NEW, "manifest.json"} and capsys.readouterr().err == ""


def test_of_two_that_take_a_lock_over_one_wins(s3, on_machine, monkeypatch):
    put(s3, "lock.json", '{"owner": "dead"}')
    sleep = time.sleep

    def sleep_while_another_takes_over(seconds):
        sleep(seconds)
        if json.loads(content(s3, "lock.json"))["owner"] != "dead":
            put(s3, "lock.json", '{"owner": "other"}')

    monkeypatch.setattr(time, "sleep", sleep_while_another_takes_over)
    with pytest.raises(ValueError, match=r"is in use by another process$"), mirrored(ADDRESS, True):
        pass
    assert json.loads(content(s3, "lock.json"))["owner"] == "other"


def test_a_store_without_conditions_is_refused(s3, monkeypatch):
    pipe_file = s3fs.S3FileSystem.pipe_file

    def pipe_whatever(fs, name, data, mode):
        pipe_file(fs, name, data)

    monkeypatch.setattr(s3fs.S3FileSystem, "pipe_file", pipe_whatever)
    with pytest.raises(ValueError, match="cannot create a file only once"), mirrored(ADDRESS, True):
        pass
    assert names(s3) == set()


def test_a_process_that_lost_its_lock_hears_of_it(s3, monkeypatch):
    monkeypatch.setattr(bucket, "RENEW_S", 0.02)
    with mirrored(ADDRESS, False) as mirror:
        first = content(s3, "lock.json")
        give_up = time.monotonic() + 10
        while content(s3, "lock.json") == first and time.monotonic() < give_up:
            time.sleep(0.02)
        assert content(s3, "lock.json") != first
        mirror.check()
        while not mirror.is_lost and time.monotonic() < give_up:
            put(s3, "lock.json", "damaged")
            time.sleep(0.05)
        with pytest.raises(OSError, match="another process has taken this run over"):
            mirror.check()
    assert names(s3) == {"lock.json"}
