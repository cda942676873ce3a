"""What a section may say, and what is refused."""

import pytest
from pydantic import ValidationError

from gw_fault.settings import Fault


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"delay": {}}, "Field required"),
        ({"delay": {"ms": 0}}, "greater than or equal to 1"),
        ({"delay": {"ms": 600_001}}, "less than or equal to 600000"),
        ({"delay": {"ms": 1, "percent": 101}}, "less than or equal to 100"),
        ({"abort": {"status": 100}}, "greater than or equal to 200"),
        ({"abort": {"status": 600}}, "less than or equal to 599"),
        ({"headers": {"a b": "c"}}, "'a b' is not a header name"),
        ({"max_active": 0}, "greater than or equal to 1"),
        ({"aborts": {}}, "Extra inputs"),
    ],
)
def test_what_makes_no_sense_is_refused(section, told):
    with pytest.raises(ValidationError, match=told):
        Fault.model_validate(section)


def test_names_of_headers_have_no_case():
    assert Fault.model_validate({"headers": {"X-Chaos": None}}).headers == {"x-chaos": None}
