"""The server against its own OpenAPI description: no request of any kind gives a 5xx or an answer that is not described."""

from __future__ import annotations

import echomimic_server_kit as kit
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from ported.echomimic.server import create_app

ROUTING = {400, 404, 405, 422}  # what the framework itself answers, on every path


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    service = kit.make_service(tmp_path_factory.mktemp("schema"))
    yield schemathesis.openapi.from_asgi("/openapi.json", create_app(service))
    service.close()


def ask(operation, answers: list[int]) -> None:
    """Send drawn requests of one operation, right and wrong ones, and hold every answer to the description."""
    wanted = operation.definition.raw["responses"]

    @settings(max_examples=20, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def draw(case):
        answer = case.call()
        answers.append(answer.status_code)
        assert answer.status_code < 500 or answer.status_code == 503, answer.text
        assert str(answer.status_code) in wanted or answer.status_code in ROUTING, answer.text

    draw()


def test_every_answer_is_described(described):
    seen: dict[str, list[int]] = {}
    for found in described.get_all_operations():
        ask(found.ok(), seen.setdefault(found.ok().label, []))
    assert len(seen) == 7
    assert all(seen.values())
