from datetime import date

import pytest
from gw_sample.filter import Sunset
from gw_sample.settings import RouteSettings

from gw import Outcome
from gw.testing import check_filter, drive

DAY = 86_400.0
SETTINGS = RouteSettings(deprecated=date(1970, 1, 2), gone=date(1970, 1, 3), enforce=True)


async def test_responses_say_since_when_and_until_when():
    played = await drive([Sunset(SETTINGS, "https://example.com/changes", now=lambda: DAY)])
    assert played.status == 200
    assert played.headers.get("deprecation") == "@86400"
    assert played.headers.get("sunset") == "Sat, 03 Jan 1970 00:00:00 GMT"
    assert played.headers.get("link") == '<https://example.com/changes>; rel="deprecation"'


async def test_links_of_the_upstream_stay():
    filters = [Sunset(SETTINGS, "https://example.com/changes", now=lambda: DAY)]
    played = await drive(filters, upstream_headers={"link": "</next>; rel=next"})
    assert played.headers.get_all("link") == ["</next>; rel=next", '<https://example.com/changes>; rel="deprecation"']


@pytest.mark.parametrize(("now", "status"), [(2 * DAY - 1, 200), (2 * DAY, 410)])
async def test_the_route_is_gone_from_that_day_on(now, status):
    played = await drive([Sunset(SETTINGS, "", now=lambda: now)])
    assert played.status == status


async def test_who_is_told_that_it_is_gone_is_told_since_when():
    played = await drive([Sunset(SETTINGS, "", now=lambda: 3 * DAY)])
    assert played.outcome is Outcome.REPLY
    assert played.reason == "sunset.gone"
    assert played.headers.get("sunset") == "Sat, 03 Jan 1970 00:00:00 GMT"


async def test_it_keeps_the_rules_of_filters():
    await check_filter(lambda: Sunset(SETTINGS, ""))
