"""The server against its own OpenAPI description: no request of any kind gives a 5xx or an answer that is not described."""

from __future__ import annotations

import echomimic_server_kit as kit
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from ported.echomimic.server import create_app


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    service = kit.make_service(tmp_path_factory.mktemp("schema"))
    yield schemathesis.openapi.from_asgi("/openapi.json", create_app(service))
    service.close()


schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()
@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_described(case):
    answer = case.call()
    assert answer.status_code < 500, answer.text
    assert str(answer.status_code) in case.operation.definition.raw["responses"] or answer.status_code in (
        400,
        404,
        405,
        422,
    )
