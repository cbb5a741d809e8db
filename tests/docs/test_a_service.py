"""docs/a_service.md runs as it stands, and the service that it starts, examples/service, holds what it says."""

import contextlib
import csv
import io
import json
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.service import Service
from torchrec_mtl.__main__ import main
from torchrec_mtl.inference.package import load_package
from torchrec_mtl.inference.package.manifest import Manifest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "a_service.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.M)
pytestmark = pytest.mark.slow

KNOWN = {"user": "u0012", "item": "sku-022", "device": "phone", "price": 11.01, "ctr_7d": 0.18, "recent": ["sku-217"]}
ANSWERED, REFUSED = (f'service_requests_total{{path="/predict",status="{status}"}}' for status in (200, 503))
UNKNOWN = {"user": "u9999", "item": "sku-022", "device": None, "price": None, "ctr_7d": None, "recent": []}


def printed(command: str) -> str:
    """What a command prints; our commands and programs run in this process."""
    program, *arguments = shlex.split(command)
    out = io.StringIO()
    if program not in ("torchrec-mtl", "python"):
        return subprocess.run(command, shell=True, capture_output=True, text=True, check=True, timeout=60).stdout
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as err:
        if program == "torchrec-mtl":
            assert main(arguments) == 0, err.getvalue()
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", arguments)
                runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
    return out.getvalue()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Runs the page; the folder in which it was run, and the commands that printed what it says."""
    folder, checked, services = tmp_path_factory.mktemp("page"), [], []
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for kind, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
            if kind == "console":
                for command, said in COMMAND.findall(text):
                    if command.endswith(" --port 8000 &"):
                        services.append(Service(Path(command.split()[2]), folder / "service.log"))
                        stack.callback(services[-1].stop)
                        continue
                    found = printed(
                        command.replace("localhost:8000", f"127.0.0.1:{services[-1].port if services else 0}")
                    )
                    pattern = re.escape(said.rstrip("\n")).replace(r"\.\.\.", ".*")
                    assert re.fullmatch(pattern, found.rstrip("\n"), re.S), f"{command}\n{found}"
                    checked.append(command)
            else:
                Path({"python": "shop.py", "json": "request.json"}[kind]).write_text(text)
    return folder, checked


@pytest.mark.verify
def test_the_page(page):
    folder, checked = page
    assert len(checked) == 21
    log = (folder / "service.log").read_text()
    assert "taken: tuesday" in log
    assert "refused: " in log
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def packages(page):
    return page[0] / "packages"


@pytest.fixture(scope="module")
def service(packages, tmp_path_factory):
    """A service of the link ``packages/served``, with low limits; every test leaves it at the first package."""
    lead(packages / "served", packages / "monday")
    log = tmp_path_factory.mktemp("log") / "log"
    started = Service(packages / "served", log, "--rows", "500", "--waiting-rows", "500", "--body-seconds", "3")
    yield started
    assert started.stop() == -signal.SIGTERM  # uvicorn passes it on when it has shut down
    assert "Application shutdown complete" in log.read_text()
    assert "Traceback" not in log.read_text()


def lead(link, folder):
    """Makes the link lead to another folder, at once."""
    other = link.with_name("other")
    other.symlink_to(folder)
    other.replace(link)


def serve(service, packages, name):
    """Puts another package in place, and waits until it is served."""
    lead(packages / "served", packages / name)
    until(lambda: service.health()["package"]["name"] == name)


def until(holds, seconds=60.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def log_rows(number):
    """Raw rows of the log, without histories."""
    with (Path.cwd() / "shop.csv").open() as lines:
        found = list(csv.DictReader(lines))[-number:]
    return [
        {**{name: row[name] or None for name in ("user", "item", "device", "price", "ctr_7d")}, "recent": []}
        for row in found
    ]


def as_numbers(row):
    return {**row, **{name: row[name] and float(row[name]) for name in ("price", "ctr_7d")}}


def test_answers_are_those_of_the_package(service, packages, page, monkeypatch):
    monkeypatch.chdir(page[0])
    rows = [as_numbers(row) for row in log_rows(100)] + [KNOWN, UNKNOWN]
    answer = service.predict(rows, {"buy": 20, "click": 0.5})
    expected = load_package(packages / "monday").predict(rows, values={"buy": 20.0, "click": 0.5}).to_polars()
    assert answer["package"] == service.health()["package"]["id"]
    assert list(answer["predictions"][0]) == expected.columns
    found = [list(each.values()) for each in answer["predictions"]]
    np.testing.assert_allclose(found, expected.to_numpy(), rtol=1e-5, atol=1e-6)
    assert "score" not in service.predict([KNOWN])["predictions"][0]


def test_what_is_no_package_is_not_served(tmp_path):
    with pytest.raises(RuntimeError, match=r"^the service ended:\nerror: .*must be the folder of a package.*\n$"):
        Service(tmp_path, tmp_path / "log")


def test_only_this_machine_reaches_it(service):
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", service.port), timeout=5)


def changed(**columns):
    return {"rows": [KNOWN, {**KNOWN, **columns}]}


BAD = {  # body, status, words of the sentence
    "no body": (b"", 400, "the body must be JSON"),
    "no JSON": (b"user=3", 400, "the body must be JSON"),
    "half of it": (b'{"rows": [', 400, "the body must be JSON"),
    "NaN": (b'{"rows": [NaN]}', 400, "the body must be JSON"),
    "bytes": (b'{"rows": "\xff\xfe"}', 400, "the body must be JSON"),
    "depth": (b"[" * 100_000, 400, "the body must be JSON"),
    "a list": ([KNOWN], 400, "the body must be an object with `rows`"),
    "null": (None, 400, "the body must be an object with `rows`"),
    "a path": ({"rows": [KNOWN], "package": "/tmp/other"}, 400, "the body must be an object with `rows`, and `values`"),
    "no rows": ({"rows": []}, 400, "`rows` must be a list of at least one object"),
    "rows by name": ({"rows": {"0": KNOWN}}, 400, "`rows` must be a list of at least one object"),
    "a number for a row": ({"rows": [KNOWN, 3]}, 400, "`rows` must be a list of at least one object"),
    "too many rows": ({"rows": [{}] * 501}, 413, "`rows` must have at most 500 rows, not 501"),
    "too large": (b" " * (2**20 + 1), 413, "the body must have at most 1048576 bytes"),
    "a missing column": ({"rows": [{"user": "u1"}]}, 400, "row 0 (counted from 0): column 'ctr_7d' is missing"),
    "another column": (changed(devise="web"), 400, "row 1 (counted from 0): column 'devise' must be one of"),
    "an object": (changed(user={"$gt": ""}), 400, "column 'user', row 1 (counted from 0): must be a number, a string"),
    "a list of lists": (changed(recent=[["sku-1"]]), 400, "column 'recent', row 1 (counted from 0): must be a number"),
    "text for a number": (changed(price="cheap"), 400, "column 'price'"),
    "a number for text": ({"rows": [{**KNOWN, "user": 12}]}, 400, "field 'user' must have string values"),
    "numbers among texts": (changed(user=12), 400, "column 'user' must hold values of one type"),
    "a list for a value": ({"rows": [{**KNOWN, "item": ["sku-1"]}]}, 400, "field 'item' must have one value a row"),
    "a value for a list": ({"rows": [{**KNOWN, "recent": "sku-1"}]}, 400, "column 'recent' must hold lists of 'item'"),
    "a large integer": ({"rows": [{**KNOWN, "item": 2**63}]}, 400, "column 'item'"),
    "an infinite number": (b'{"rows": [{"user": 1e999}]}', 400, "the body must be JSON"),
    "no task": ({"rows": [KNOWN], "values": {"by": 2}}, 400, "`values`: task 'by' must be one of"),
    "no number": ({"rows": [KNOWN], "values": {"buy": "2"}}, 400, "`values` must be an object with a number"),
    "values in a list": ({"rows": [KNOWN], "values": [1, 2, 3]}, 400, "`values` must be an object with a number"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_one_sentence(name, service):
    body, status, words = BAD[name]
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    found, headers, answer = service.request("POST", "/predict", body)
    assert (found, headers["content-type"]) == (status, "application/json")
    assert words in json.loads(answer)["error"]
    assert "\n" not in json.loads(answer)["error"]
    assert len(service.predict([KNOWN])["predictions"]) == 1


@pytest.mark.parametrize(
    ("method", "path", "content_type", "status"),
    [
        ("GET", "/predict", "application/json", 405),
        ("DELETE", "/health", "application/json", 405),
        ("POST", "/", "application/json", 404),
        ("GET", "/../../../etc/passwd", "application/json", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", "application/json", 404),
        ("POST", "/predict", "text/plain", 415),
        ("POST", "/predict", "", 415),
    ],
)
def test_other_paths_methods_and_types_are_refused(method, path, content_type, status, service):
    found, headers, answer = service.request(method, path, b"{}", **{"content-type": content_type})
    assert found == status
    assert "must be" in json.loads(answer)["error"]
    assert status != 405 or headers["allow"] in ("GET", "POST")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"POST /predict HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /predict HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",  # and goes
        b"",
    ],
)
def test_what_is_no_request_leaves_it_up(sent, service):
    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as connection:
        connection.sendall(sent)
    assert len(service.predict([KNOWN])["predictions"]) == 1


def test_requests_that_are_scored_together_are_answered_apart(service):
    """Good and bad ones, of one row and of many, at once: each as if it were alone."""
    requests = [[KNOWN], [UNKNOWN] * 3, [{**KNOWN, "price": "cheap"}], [KNOWN, UNKNOWN], [{**KNOWN, "user": 12}]]
    bodies = [json.dumps({"rows": rows}).encode() for rows in requests]

    def ask(body):
        status, _, answer = service.request("POST", "/predict", body)
        return status, json.loads(answer)

    alone = [ask(body) for body in bodies]
    assert [status for status, _ in alone] == [200, 200, 400, 200, 400]
    before = service.metrics()
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, bodies * 20))
    for (status, answer), (expected_status, expected) in zip(together, alone * 20, strict=True):
        assert status == expected_status
        if status == 400:
            assert answer == expected
            continue
        found, wanted = ([list(row.values()) for row in each["predictions"]] for each in (answer, expected))
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    after = service.metrics()
    num_rows, num_batches = (
        after[f"service_batch_rows_{n}"] - before[f"service_batch_rows_{n}"] for n in ("sum", "count")
    )
    assert num_rows == 20 * 6
    assert num_batches < 60


def test_more_rows_than_may_wait_are_told_to_come_again(service):
    body, start = json.dumps({"rows": [KNOWN] * 400}).encode(), threading.Barrier(12)
    before = service.metrics().get(REFUSED, 0)

    def ask(_):
        start.wait()
        return service.request("POST", "/predict", body)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    statuses = [status for status, _, _ in answers]
    assert set(statuses) == {200, 503}
    assert all(headers["retry-after"] == "1" for status, headers, _ in answers if status == 503)
    assert service.metrics()[REFUSED] - before == statuses.count(503)
    assert service.request("POST", "/predict", body)[0] == 200


def test_a_body_must_come_in_time(service):
    head = b"POST /predict HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(head)
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")
    assert len(service.predict([KNOWN])["predictions"]) == 1


def test_a_new_package_is_taken_while_requests_are_answered(service, packages):
    before, expected, stop = service.metrics(), {}, threading.Event()
    for name in ("monday", "tuesday"):
        expected[name] = load_package(packages / name).predict([KNOWN]).marginal[0]
    first = service.health()["package"]["id"]
    service.request(
        "POST", "/predict", json.dumps(changed(price="cheap")).encode()
    )  # not what the new one is warmed with

    def ask():
        seen = []
        while not stop.is_set():
            answer = service.predict([KNOWN])
            name = "monday" if answer["package"] == first else "tuesday"
            found = list(answer["predictions"][0].values())[:3]
            np.testing.assert_allclose(found, expected[name], rtol=1e-5)
            seen.append(name)
        return seen

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        time.sleep(0.3)
        lead(packages / "served", packages / "tuesday")
        until(lambda: service.health()["package"]["name"] == "tuesday" or any(each.done() for each in asking))
        time.sleep(0.3)
        stop.set()
        seen = [each.result() for each in asking]
    for names in seen:
        assert names == sorted(names)  # none of the old one after the first of the new one
        assert {*names} == {"monday", "tuesday"}
    after = service.metrics()
    assert after[ANSWERED] - before.get(ANSWERED, 0) == sum(map(len, seen))
    assert after["service_packages_taken"] - before["service_packages_taken"] == 1
    serve(service, packages, "monday")


def scale_rows(folder):
    rows = np.load(folder / "rows_0.npy")
    np.save(folder / "rows_0.npy", (2 * rows.view(np.float16)).view(np.uint8))
    Manifest.load(folder.with_name("monday")).save(folder)


def rename_task(folder):
    file = folder / "manifest.json"
    file.write_text(file.read_text().replace('"buy"', '"order"'))


def drop_encoders(folder):
    (folder / "encoders.json").unlink()
    Manifest.load(folder.with_name("monday")).save(folder)


def lead_to_itself(folder):
    shutil.rmtree(folder)
    folder.symlink_to(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (scale_rows, "the scores of its golden batch differ by"),
        (rename_task, "must have the tasks of the package that is served, monday"),
        (drop_encoders, "must have the columns of the package that is served, monday"),
        (lambda folder: (folder / "rows_0.npy").unlink(), "rows_0.npy: is missing"),
        (lambda folder: (folder / "reference.json").write_text("{}"), "was changed since the package was made"),
        (shutil.rmtree, "must be the folder of a package"),
        (lead_to_itself, "must be the folder of a package"),
    ],
)
def test_a_bad_package_is_refused_and_the_old_one_stays(change, reason, service, packages):
    before = service.metrics()
    shutil.copytree(packages / "monday", packages / "bad")
    try:
        change(packages / "bad")
        lead(packages / "served", packages / "bad")
        until(lambda: service.health()["refused"])
    finally:
        shutil.rmtree(packages / "bad", ignore_errors=True)
        (packages / "bad").unlink(missing_ok=True)
    health, metrics = service.health(), service.metrics()
    assert health["package"]["name"] == "monday"
    assert health["refused"]["name"] == "bad"
    assert reason in health["refused"]["reason"]
    assert metrics["service_refused"] == 1
    assert metrics["service_packages_refused"] == before["service_packages_refused"] + 1
    assert len(service.predict([KNOWN])["predictions"]) == 1
    lead(packages / "served", packages / "monday")
    until(lambda: service.health()["refused"] is None)
    assert service.metrics()["service_packages_taken"] == before["service_packages_taken"]


def test_drift_is_told(service, packages, page, monkeypatch):
    """Of rows as they were, and of rows whose users are new and devices missing."""
    monkeypatch.chdir(page[0])
    serve(service, packages, "tuesday")
    rows = [as_numbers(row) for row in log_rows(1000)]
    reference = json.loads((packages / "tuesday" / "reference.json").read_text())
    answers = [service.predict(rows[:500])["predictions"]]
    assert service.health()["drift"]["scores"] == {}  # of too few rows to tell
    answers.append(service.predict(rows[500:])["predictions"])
    scores = [each["click"] for answer in answers for each in answer]
    same = service.health()["drift"]
    assert same["num_rows"] == 1000
    share = sum(row["device"] is None for row in rows) / 1000
    assert same["fields"]["device"]["missing"] == share == pytest.approx(0.05, abs=0.02)
    assert same["fields"]["device"]["expected_missing"] == pytest.approx(share, abs=0.02)
    bounds = [-np.inf, *reference["edges"]["click"], np.inf]
    found = np.histogram(scores, bounds)[0] + 0.5
    expected = np.array(reference["scores"]["click"]) + 0.5
    p, q = expected / expected.sum(), found / found.sum()
    assert same["scores"]["click"] == pytest.approx(((q - p) * np.log(q / p)).sum())
    new = [{**row, "user": f"new {n}", "device": None} for n, row in enumerate(rows)]
    for part in (new[:500], new[500:]):
        service.predict(part)
    moved = service.health()["drift"]
    assert moved["fields"]["user"]["unknown"] == pytest.approx((1 + same["fields"]["user"]["unknown"]) / 2)
    assert moved["fields"]["device"]["missing"] == pytest.approx((1 + share) / 2)
    assert moved["scores"]["click"] > same["scores"]["click"]
    metrics = service.metrics()
    assert metrics["service_drift_rows"] == 2000
    assert metrics['service_drift_unknown{field="user",of="found"}'] == moved["fields"]["user"]["unknown"]
    for part in 20 * [rows[:500], rows[500:]]:
        service.predict(part)
    again = service.health()["drift"]
    assert again["num_rows"] == 12_000  # the first 10,000 are gone, and with them those of new users
    assert again["fields"] == same["fields"]
    assert again["scores"]["click"] == pytest.approx(same["scores"]["click"], rel=0.3)
    serve(service, packages, "monday")
