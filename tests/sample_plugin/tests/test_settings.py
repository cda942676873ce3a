import pytest
from gw_sample.settings import RouteSettings
from pydantic import ValidationError


def test_a_route_cannot_be_gone_before_it_is_deprecated():
    with pytest.raises(ValidationError, match=r"must not be before deprecated \(2026-02-01\), not 2026-01-01"):
        RouteSettings.model_validate_json('{"deprecated": "2026-02-01", "gone": "2026-01-01"}')


def test_unknown_keys_are_refused():
    with pytest.raises(ValidationError, match="Extra inputs"):
        RouteSettings.model_validate_json('{"deprecated": "2026-02-01", "end": "2026-01-01"}')
