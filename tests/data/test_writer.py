import multiprocessing
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from tests.data.prepared import SCHEMA, write
from torchrec_mtl.data import SPLITS, Schema, build_once, read_split
from torchrec_mtl.data.writer import SplitFiles
from torchrec_mtl.errors import InputError

UNCOUNTED = replace(SCHEMA, num_rows={})


def build(folder: Path) -> Schema:
    for split in SPLITS:
        write(folder, split)
    return UNCOUNTED


def must_not_build(folder: Path) -> Schema:
    raise AssertionError("built twice")


def visible_names(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir() if not path.name.startswith("."))


def test_the_data_set_has_row_counts_and_the_usual_permissions(tmp_path: Path) -> None:
    directory = build_once(tmp_path / "new" / "shop", build)
    assert Schema.load(directory) == replace(SCHEMA, num_rows={"train": 4, "valid": 4, "test": 4})
    assert len(read_split(directory, "valid")) == 4
    plain = tmp_path / "plain"
    plain.mkdir()
    assert directory.stat().st_mode == plain.stat().st_mode


def test_a_second_run_does_not_build(tmp_path: Path) -> None:
    directory = build_once(tmp_path / "shop", build)
    assert build_once(directory, must_not_build) == directory


@pytest.mark.parametrize("error", [InputError("bad row"), KeyboardInterrupt()])
def test_a_failed_build_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fail(folder: Path) -> Schema:
        write(folder, "train")  # writes schema.json too: even then the folder is not published
        raise error

    with pytest.raises(type(error)):
        build_once(tmp_path / "shop", fail)
    assert visible_names(tmp_path) == []
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".parquet"]
    build_once(tmp_path / "shop", build)


def test_a_build_without_a_split_is_not_published(tmp_path: Path) -> None:
    def incomplete(folder: Path) -> Schema:
        write(folder, "train")
        return UNCOUNTED

    with pytest.raises(InputError, match=r"valid\.parquet"):
        build_once(tmp_path / "shop", incomplete)
    assert visible_names(tmp_path) == []


def die_halfway(folder: Path) -> Schema:
    (folder / "train.parquet").write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)
    return UNCOUNTED


def test_leftovers_of_a_killed_build_are_ignored_then_removed(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=build_once, args=(tmp_path / "shop", die_halfway))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.rglob("train.parquet"))) == 1
    assert visible_names(tmp_path) == []
    directory = build_once(tmp_path / "shop", build)
    assert list(tmp_path.rglob("train.parquet")) == [directory / "train.parquet"]


def test_concurrent_builders_share_one_build(tmp_path: Path) -> None:
    builds, barrier = [], threading.Barrier(4)

    def slow(folder: Path) -> Schema:
        builds.append(folder)
        threading.Event().wait(0.3)
        return build(folder)

    def prepare() -> None:
        barrier.wait()
        lengths.append(len(read_split(build_once(tmp_path / "shop", slow), "test")))

    lengths: list[int] = []
    threads = [threading.Thread(target=prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert lengths == [4, 4, 4, 4]


def test_a_directory_with_other_files_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    build_once(tmp_path / "shop", build)  # an empty directory is accepted

    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match=r"home: exists but has no schema\.json"):
        build_once(tmp_path / "home", must_not_build)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize("long_lists", [False, True])
def test_split_files_grow(tmp_path: Path, long_lists: bool) -> None:
    parts = [
        pl.DataFrame({"ids": [[1, 2], [3]]}),
        pl.DataFrame({"ids": [[1, 2]]}),
        pl.DataFrame({"ids": [[9]]}).clear(),
    ]
    with SplitFiles(tmp_path, long_lists) as files:
        for part in parts:
            files.write("train", part)
            files.write("test", part)
        files.write("valid", parts[-1])
    assert files.num_rows == {"train": 3, "valid": 0, "test": 3}
    assert pl.read_parquet(tmp_path / "train.parquet").equals(pl.concat(parts))
    assert pl.read_parquet(tmp_path / "valid.parquet").is_empty()
    with pytest.raises(InputError, match=r"`raw` \(='raw'\): no row is left for valid"):
        files.check_not_empty("raw")
