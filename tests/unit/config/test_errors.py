import pytest
from pydantic import BaseModel, Field, SecretStr, ValidationError, model_validator

from gw.config import errors
from gw.config.errors import ConfigError, Located, did_you_mean, explain, path_text
from gw.hookspecs import Problem


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), ""),
        (("a",), "a"),
        (("upstreams", 0, "proxy", "methods", 2), "upstreams[0].proxy.methods[2]"),
        (("match", "headers", "x-a"), "match.headers.x-a"),
        (("match", "query", "a.b c"), "match.query['a.b c']"),
        (("match", "query", ""), "match.query['']"),
    ],
)
def test_a_path_is_written_as_people_do(path, text):
    assert path_text(path) == text


def test_a_problem_says_where_what_and_how_bad():
    wrong, doubtful = Problem(("a", 0), "is wrong"), Problem((), "is doubtful", "warning")
    assert str(Located(wrong, "gw.yaml", 3, 7)) == "gw.yaml:3:7: a[0]: is wrong"
    assert str(Located(wrong, "environment variable GW_A")) == "environment variable GW_A: a[0]: is wrong"
    assert str(Located(doubtful, "gw.yaml", 1, 1)) == "gw.yaml:1:1: warning: is doubtful"


def test_problems_are_told_in_the_order_of_the_file():
    at = [(10, 1), (2, 9), (2, 10), (0, 0)]
    error = ConfigError(Located(Problem((), f"{line}/{column}"), "f", line, column) for line, column in at)
    assert [problem.problem.message for problem in error.problems] == ["0/0", "2/9", "2/10", "10/1"]


def test_a_flood_of_problems_is_cut_and_counted(monkeypatch):
    monkeypatch.setattr(errors, "MAX_CONFIG_PROBLEMS", 2)
    error = ConfigError(Located(Problem((), "is wrong"), "f", line, 1) for line in range(1, 6))
    assert str(error) == "f:1:1: is wrong\nf:2:1: is wrong\n... and 3 more"
    assert len(error.problems) == 5


def test_the_word_that_was_meant_is_guessed_only_when_it_is_near():
    assert did_you_mean("bind_prot", ["bind_port", "bind_host"]) == " (did you mean 'bind_port'?)"
    assert did_you_mean("xyz", ["bind_port", "bind_host"]) == ""
    assert did_you_mean("bind", ["bind_port"], likeness=0.9) == ""


class Sample(BaseModel, extra="forbid"):
    number: int = 0
    ratio: float = 0.0
    flag: bool = False
    text: str = ""
    short: str = Field("x", min_length=1, max_length=3, pattern="^x")
    some: tuple[int, ...] = Field((1,), min_length=1)
    names: dict[str, int] = {}
    inner: BaseModel | None = None
    low: int = Field(0, ge=0, lt=10)
    secret: SecretStr = SecretStr("")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ('{"number": "1"}', "must be an integer, not text"),
        ('{"number": 1.5}', "must be an integer, not a number"),
        ('{"number": true}', "must be an integer, not true"),
        ('{"number": null}', "must be an integer, not null"),
        ('{"ratio": "1"}', "must be a number, not text"),
        ('{"flag": 1}', "must be true or false, not an integer"),
        ('{"text": 1.0}', "must be text, not a number; quote it"),
        ('{"text": false}', "must be text, not false; quote it"),
        ('{"text": []}', "must be text, not a list"),
        ('{"some": {}}', "must be a list, not a mapping"),
        ('{"some": []}', "must not be empty"),
        ('{"names": []}', "must be a mapping, not a list"),
        ('{"inner": 5}', "must be a mapping, not an integer"),
        ('{"low": -1}', "must be at least 0, not -1"),
        ('{"low": 10}', "must be less than 10, not 10"),
        ('{"short": ""}', "must not be empty"),
        ('{"short": "xxxx"}', "string should have at most 3 characters"),
        ('{"short": "y"}', "string should match pattern '^x'"),
        ('{"secret": 5}', "must be text, not an integer; quote it"),
        ('{"other": 5}', "is not a known key"),
    ],
)
def test_what_pydantic_found_is_said_in_our_words(values, message):
    with pytest.raises(ValidationError) as caught:
        Sample.model_validate_json(values, strict=True)
    (error,) = caught.value.errors()
    assert explain(error, secret=False) == message


def test_a_list_that_is_short_because_an_item_is_wrong_is_one_problem():
    with pytest.raises(ValidationError) as caught:
        Sample.model_validate_json('{"some": ["x"]}', strict=True)
    assert [explain(error, secret=False) for error in caught.value.errors()] == ["must be an integer, not text", None]


def test_a_secret_is_not_shown():
    with pytest.raises(ValidationError) as caught:
        Sample.model_validate_json('{"low": 7777}', strict=True)
    assert explain(caught.value.errors()[0], secret=True) == "must be less than 10"


def test_what_a_validator_made_is_refused_in_pydantic_s_words():
    class Early(BaseModel):
        some: tuple[int, ...] = ()

        @model_validator(mode="before")
        @classmethod
        def _as_python(cls, values):
            return dict(values)

    with pytest.raises(ValidationError) as caught:
        Early.model_validate_json('{"some": [1]}', strict=True)
    assert explain(caught.value.errors()[0], secret=False) == "should be a valid array"
