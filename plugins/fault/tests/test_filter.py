"""Who waits, who fails, and how many at once."""

import anyio
import pytest

from gw.testing import check_filter, drive, in_memory
from gw_fault.filter import Active, FaultFilter
from gw_fault.settings import Fault


class Play:
    """A filter whose waits are written down, and whose chances are given."""

    def __init__(self, *chances, active=None, **section):
        self.waits = []
        self.chances = list(chances)
        self.active = active or Active()
        self.filter = FaultFilter(Fault.model_validate(section), self.active, self._sleep, self._chance)

    async def _sleep(self, seconds):
        self.waits.append(round(seconds, 6))
        assert self.active.count >= 1

    def _chance(self):
        return self.chances.pop(0) if self.chances else 0.0


@pytest.mark.parametrize(
    ("section", "chances", "status", "waits"),
    [
        ({}, [], 200, []),
        ({"delay": {"ms": 250}}, [], 200, [0.25]),
        ({"delay": {"ms": 250, "jitter_ms": 100}}, [0.0, 0.5], 200, [0.3]),
        ({"delay": {"ms": 250, "percent": 50}}, [0.49], 200, [0.25]),
        ({"delay": {"ms": 250, "percent": 50}}, [0.5], 200, []),
        ({"delay": {"ms": 250, "percent": 0}}, [0.0], 200, []),
        ({"abort": {}}, [], 503, []),
        ({"abort": {"status": 418, "percent": 10}}, [0.09], 418, []),
        ({"abort": {"status": 418, "percent": 10}}, [0.1], 200, []),
        ({"abort": {}, "delay": {"ms": 1000}}, [], 503, [1.0]),
    ],
)
async def test_faults_happen_as_often_as_they_should(section, chances, status, waits):
    play = Play(*chances, **section)
    played = await drive(play.filter)
    assert (played.status, play.waits, play.active.count) == (status, waits, 0)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"x-chaos": "1"}, 200),
        ({"x-chaos": "1", "x-who": "me"}, 503),
        ({"x-chaos": "2", "x-who": "me"}, 200),
        ({"x-chaos": "1", "x-who": "anybody"}, 503),
    ],
)
async def test_only_requests_with_the_headers_are_hit(headers, status):
    play = Play(headers={"X-Chaos": "1", "x-who": None}, abort={})
    assert (await drive(play.filter, headers=headers)).status == status


async def test_an_answer_says_what_the_section_says():
    play = Play(abort={"status": 500, "body": "größe", "retry_after": 3})
    played = await drive(play.filter)
    assert (played.status, played.body.decode(), played.reason) == (500, "größe", "fault.abort")
    assert played.headers.get("retry-after") == "3"
    assert played.headers.get("content-type") == "text/plain; charset=utf-8"


async def test_only_so_many_wait_at_once():
    active = Active()
    active.count = 2
    play = Play(active=active, delay={"ms": 10}, max_active=2)
    played = await drive(play.filter, explain=True)
    assert (played.status, play.waits, active.count) == (200, [], 2)
    assert ("no delay", "fault.max_active") in [(note.verdict, note.reason) for note in played.notes]


async def test_a_client_that_leaves_frees_its_place():
    active = Active()
    section = Fault.model_validate({"delay": {"ms": 10}})
    waiting = anyio.Event()

    async def sleep(_):
        waiting.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drive, FaultFilter(section, active, sleep))
        await waiting.wait()
        assert active.count == 1
        tasks.cancel_scope.cancel()
    assert active.count == 0


async def test_it_keeps_the_promises_of_a_filter():
    section = Fault.model_validate({"abort": {"percent": 100}, "headers": {"x": "y"}})
    await check_filter(lambda: FaultFilter(section, Active()))


async def test_the_nearest_section_counts():
    config = {
        "plugins": ["fault"],
        "fault": {"abort": {"status": 500}},
        "upstreams": [{"name": "up", "host": "192.0.2.1", "fault": {"abort": {"status": 501}}}],
        "routes": [
            {"match": {"prefix": "/up"}, "upstream": "up"},
            {"match": {"prefix": "/own"}, "upstream": "up", "fault": {"abort": {"status": 502}}},
            {"match": {"prefix": "/off"}, "upstream": "up", "fault": {}},
        ],
    }
    async with in_memory(config) as gateway:
        statuses = [(await gateway.get(path)).status for path in ("/up", "/own", "/off", "/none")]
    assert statuses == [501, 502, 200, 500]
