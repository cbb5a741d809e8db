"""What a user of the service does, for Locust: sends one request after the other, and checks each answer."""

import json
import math
import os
import random
from pathlib import Path

from locust import FastHttpUser, task

GIVEN = json.loads(Path(os.environ["SERVICE_REQUESTS"]).read_text())
BODIES = [json.dumps({"rows": rows}).encode() for rows in GIVEN["requests"]]
TASKS = ("click", "cart", "buy")
JSON = {"content-type": "application/json"}


def is_right(number: int, answer: dict) -> bool:
    """Whether the package that answered says this of the request's rows."""
    found = [row[name] for row in answer["predictions"] for name in TASKS]
    expected = GIVEN["expected"][answer["package"]][number]
    return all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(found, expected, strict=True))


class Client(FastHttpUser):
    """Sends requests as fast as they are answered."""

    @task
    def predict(self) -> None:
        number = random.randrange(len(BODIES))
        with self.client.post("/predict", BODIES[number], headers=JSON, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"status {answer.status_code}")
            elif not is_right(number, json.loads(answer.content)):
                answer.failure("the answer is not the package's")
