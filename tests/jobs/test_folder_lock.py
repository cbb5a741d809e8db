"""A folder that one job at a time holds, on this machine and on others."""

import multiprocessing
import os
import signal
import sys
import threading
import time

import pytest

from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs import folder_lock as module
from torchrec_mtl.jobs.folder_lock import folder_lock

CONTEXT = multiprocessing.get_context("forkserver")
KINDS = [("name", "run"), ("output", "comparison")]
OTHER = "process 12 on node7\n00000000-0000-0000-0000-000000000000"


def _hold(directory, kind, connection, locks=True):
    if not locks:
        module.fcntl.flock = _no_locks
    module.BEAT = 0.2
    sys.stderr = (directory / "said").open("w")
    with folder_lock(directory, *kind):
        connection.send(os.getpid())
        signal.pause()


def _no_locks(*arguments):
    raise OSError(95, "Operation not supported")


def hold(directory, kind, locks=True):
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_hold, args=(directory, kind, theirs, locks))
    process.start()
    assert ours.recv() == process.pid
    return process


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_held_until_its_process_dies(tmp_path, monkeypatch, kind, locks):
    if not locks:
        monkeypatch.setattr(module.fcntl, "flock", _no_locks)
    process = hold(tmp_path, kind, locks)
    sentence = rf"`{kind[0]}` \(='{tmp_path.name}'\) must not be that of a {kind[1]} in progress, but process "
    with pytest.raises(InputError, match=rf"^{sentence}{process.pid} on .* holds it$"), folder_lock(tmp_path, *kind):
        pass
    process.kill()
    process.join()
    for _ in range(2):
        with folder_lock(tmp_path, *kind):  # at once, also without the sign that a process ends with
            assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def of_other_machine(directory, age):
    file = directory / ".lock"
    file.write_text(OTHER)
    os.utime(file, (time.time() - age, time.time() - age))
    return file


def test_a_silent_job_of_another_machine_is_taken_over_when_its_time_is_up(tmp_path, capsys):
    of_other_machine(tmp_path, age=module.DEAD + 5)
    with folder_lock(tmp_path, "name", "run"):
        assert not capsys.readouterr().out
    of_other_machine(tmp_path, age=module.DEAD - 3)
    with folder_lock(tmp_path, "name", "run"):
        said = capsys.readouterr().out
    assert said == f"{tmp_path}: process 12 on node7 gave a sign 27 s ago; without another, it is free in 3 s\n"


def test_a_job_of_another_machine_that_gives_a_sign_is_not(tmp_path):
    file = of_other_machine(tmp_path, age=2)
    threading.Timer(1, os.utime, [file]).start()
    with pytest.raises(InputError, match="but process 12 on node7 holds it"), folder_lock(tmp_path, "name", "run"):
        pass
    assert file.read_text() == OTHER


def test_one_that_ends_meanwhile_is_followed_at_once(tmp_path):
    file = of_other_machine(tmp_path, age=2)
    threading.Timer(1, file.write_text, [""]).start()
    with folder_lock(tmp_path, "name", "run"):
        pass


def test_a_job_that_was_taken_over_ends(tmp_path):
    process = hold(tmp_path, KINDS[0])
    (tmp_path / ".lock").write_text(OTHER)
    process.join(60)
    assert process.exitcode == 1
    assert "process 12 on node7 took over, as this process stood still" in (tmp_path / "said").read_text()
    assert (tmp_path / ".lock").read_text() == OTHER


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / ".lock").mkdir()
    sentence = rf"^`name` \(='{tmp_path.name}'\) must be a folder that can be written, but .*\.lock cannot be: Is a dir"
    with pytest.raises(InputError, match=sentence), folder_lock(tmp_path, "name", "run"):
        pass


def test_the_heartbeat_goes_on(tmp_path):
    process = hold(tmp_path, KINDS[0])
    first = (tmp_path / ".lock").stat().st_mtime_ns
    while (tmp_path / ".lock").stat().st_mtime_ns == first:
        time.sleep(0.05)
    process.kill()
    process.join()
