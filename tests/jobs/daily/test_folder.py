"""The folder of days: which days are to be done, and what a killed job left."""

from datetime import date

import pytest

from torchrec_mtl.data.table.drift import FieldCounts
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.daily.folder import DayReport, DaysFolder, days_to_do, parse_days

FIRST, SECOND, THIRD = parse_days("2026-11-01..2026-11-03")


@pytest.mark.parametrize(
    "text", ["yesterday", "2026-11-31", "2026-11-01..", "..2026-11-01", "2026-11-01-2026-11-03", ""]
)
def test_what_is_no_day_is_refused(text):
    with pytest.raises(InputError, match=r"`days` \(='.*'\) must be a day such as 2026-11-01, or"):
        parse_days(text)


def test_days_are_in_order():
    with pytest.raises(InputError, match="must not end before its first day"):
        parse_days("2026-11-03..2026-11-01")
    assert parse_days("2026-11-03") == [THIRD]


def test_days_go_on_after_the_last_published_one():
    days = [FIRST, SECOND, THIRD]
    assert days_to_do(days, [], []) == days
    assert days_to_do(days, [], [FIRST]) == [SECOND, THIRD]
    assert days_to_do(days, [FIRST], []) == [SECOND, THIRD]
    assert days_to_do(days, days, []) == []
    assert days_to_do(days[:1], days[:2], []) == []
    assert days_to_do([THIRD], [FIRST], [SECOND]) == [THIRD]
    with pytest.raises(InputError, match=r"`skip_days` must leave a day of `days` \(=2026-11-01..2026-11-03\)"):
        days_to_do(days, [], days)
    with pytest.raises(InputError, match=r"`days` \(=2026-11-03..2026-11-03\) must begin at 2026-11-02, the day after"):
        days_to_do([THIRD], [FIRST], [])


def test_a_report_is_read_as_it_was_written(tmp_path):
    counts = {"item": FieldCounts(3, 1, 0, (2, 0))}
    scored = [{"task": "click", "space": "impressions", "metric": "auc", "value": 0.5}]
    report = DayReport(FIRST, 3, scored, counts, {"item": 0.1}, {"item": 1}, {"item": 0}, counts, 0.25, ["a"])
    (tmp_path / "day.json").write_text(report.to_json())
    assert repr(DayReport.load(tmp_path / "day.json")) == repr(report).replace("(2, 0)", "[2, 0]")
    (tmp_path / "day.json").write_text('{"day": "2026-11-01"}')
    with pytest.raises(InputError, match=r"day.json: must be the report of a day"):
        DayReport.load(tmp_path / "day.json")


def publish(folder: DaysFolder, day: date) -> None:
    folder.partial(day).mkdir()
    folder.publish(DayReport(day, 1))


def test_what_a_killed_job_left_is_removed_and_the_newest_named_again(tmp_path):
    folder = DaysFolder(tmp_path)
    folder.clear()
    publish(folder, FIRST)
    publish(folder, SECOND)
    (folder.path / "newest").unlink()
    (folder.path / "newest").symlink_to(str(FIRST))  # killed before the name was replaced
    (folder.path / ".newest.partial").symlink_to(str(SECOND))
    folder.partial(THIRD).mkdir()
    (folder.partial(THIRD) / "day.json").write_text("{}")
    folder.clear()
    assert folder.published() == [FIRST, SECOND]
    assert sorted(path.name for path in folder.path.iterdir()) == [str(FIRST), str(SECOND), "newest"]
    assert (folder.path / "newest").resolve() == folder.of(SECOND).resolve()


def test_a_refused_day_keeps_its_report_until_it_is_published(tmp_path):
    folder = DaysFolder(tmp_path)
    folder.clear()
    publish(folder, FIRST)
    folder.partial(SECOND).mkdir()
    folder.refuse(DayReport(SECOND, 1, broken=["least_auc.click=1.0 (it is 0.5000)"]))
    assert [(each.day, bool(each.broken)) for each in folder.reports()] == [(FIRST, False), (SECOND, True)]
    assert folder.published() == [FIRST]
    publish(folder, SECOND)
    assert [(each.day, bool(each.broken)) for each in folder.reports()] == [(FIRST, False), (SECOND, False)]
