"""The upstream API over real HTTP: its data, its filters and every fault it can be asked for."""

import re
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from upstream import faults
from upstream.app import (
    ACTIVITIES,
    FACTS,
    REPOSITORIES,
    USERS,
    Activity,
    Address,
    Company,
    Geo,
    Owner,
    Repository,
    User,
)

TYPES = {
    "education",
    "recreational",
    "social",
    "diy",
    "charity",
    "cooking",
    "relaxation",
    "music",
    "busywork",
}
NO_MATCH = {"error": "No activity found with the specified parameters"}

Get = Callable[..., requests.Response]


@pytest.fixture(scope="module")
def get(upstream_url: str) -> Get:
    """A function `get(path, **query)`."""

    def get(path: str, **query: Any) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False  # no proxy of the host's between
            return session.get(upstream_url + path, params=query, timeout=10)

    return get


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A `fault_key` that no other test uses."""
    return str(request.node.name)


def is_activity(response: requests.Response) -> bool:
    return response.status_code == 200 and response.json() in ACTIVITIES


def is_fact(response: requests.Response) -> bool:
    return response.status_code == 200 and response.json() in [
        {"fact": fact, "length": len(fact)} for fact in FACTS
    ]


@pytest.mark.parametrize("activity", ACTIVITIES, ids=lambda activity: activity["key"])
def test_activity_has_the_shape_of_the_bored_api(activity: Activity) -> None:
    assert list(activity) == list(Activity.__annotations__)
    assert activity["activity"].strip()
    assert activity["type"] in TYPES
    assert type(activity["participants"]) is int and activity["participants"] >= 1
    assert type(activity["price"]) is float and 0 <= activity["price"] <= 1
    assert type(activity["accessibility"]) is float and 0 <= activity["accessibility"] <= 1
    assert activity["link"] == "" or activity["link"].startswith("https://")
    assert re.fullmatch(r"\d{7}", activity["key"])


def test_activities_are_many_different_and_varied() -> None:
    assert len(ACTIVITIES) >= 120
    assert len({activity["key"] for activity in ACTIVITIES}) == len(ACTIVITIES)
    assert len({activity["activity"] for activity in ACTIVITIES}) == len(ACTIVITIES)
    by_type = Counter(activity["type"] for activity in ACTIVITIES)
    assert by_type.keys() == TYPES and min(by_type.values()) >= 10
    assert {activity["participants"] for activity in ACTIVITIES} == set(range(1, 9))


def test_activity_is_a_random_one(get: Get) -> None:
    answers = [get("/api/activity") for _ in range(20)]
    assert all(is_activity(answer) for answer in answers)
    assert len({answer.json()["key"] for answer in answers}) > 1


@pytest.mark.parametrize(
    "wanted",
    [{"type": "music"}, {"participants": 4}, {"type": "cooking", "participants": 2}],
    ids=str,
)
def test_filters_hold(get: Get, wanted: dict[str, Any]) -> None:
    for _ in range(5):
        answer = get("/api/activity", **wanted)
        assert is_activity(answer)
        assert wanted.items() <= answer.json().items()


@pytest.mark.parametrize(
    "unmatched",
    [{"type": "juggling"}, {"type": ""}, {"participants": 99}, {"participants": -1}],
    ids=str,
)
def test_no_match_is_the_bored_apis_own_answer(get: Get, unmatched: dict[str, Any]) -> None:
    answer = get("/api/activity", **unmatched)
    assert (answer.status_code, answer.json()) == (200, NO_MATCH)


@pytest.mark.parametrize("participants", ["two", "1.5", ""])
def test_participants_must_be_an_integer(get: Get, participants: str) -> None:
    answer = get("/api/activity", participants=participants)
    assert answer.status_code == 400
    assert answer.json() == {"error": f"participants: expected an integer, found {participants!r}"}


@pytest.mark.parametrize("user", USERS, ids=lambda user: user["username"])
def test_user_has_the_shape_of_jsonplaceholder(user: User) -> None:
    address, company = user["address"], user["company"]
    assert list(user) == list(User.__annotations__)
    assert list(address) == list(Address.__annotations__)
    assert list(address["geo"]) == list(Geo.__annotations__)
    assert list(company) == list(Company.__annotations__)
    assert type(user["id"]) is int
    texts = [*user.values(), *address.values(), *address["geo"].values(), *company.values()]
    assert all(text.strip() for text in texts if isinstance(text, str))
    assert re.fullmatch(r"[a-z.]+@(example\.org|[a-z-]+\.example)", user["email"])
    assert re.fullmatch(r"[a-z-]+\.example", user["website"])
    assert -90 <= float(address["geo"]["lat"]) <= 90
    assert -180 <= float(address["geo"]["lng"]) <= 180


def test_users_are_different_and_awkward_to_write_down() -> None:
    assert [user["id"] for user in USERS] == list(range(1, 13))
    assert len({user["username"] for user in USERS}) == len(USERS)
    assert len({user["email"] for user in USERS}) == len(USERS)
    names = [user["name"] for user in USERS]
    for character in ",\"'ü":
        assert any(character in name for name in names)
    assert sum(max(name) > "\u024f" for name in names) >= 3  # past the last Latin letter


def test_users_are_all_answered_at_once(get: Get) -> None:
    answer = get("/api/users")
    assert (answer.status_code, answer.json()) == (200, USERS)


def test_facts_are_many_different_and_short() -> None:
    assert len(FACTS) >= 40
    assert len(set(FACTS)) == len(FACTS)
    assert all(re.fullmatch(r"[A-Z].{10,98}\.", fact) for fact in FACTS)
    assert not all(fact.isascii() for fact in FACTS)  # or bytes could pass for characters


def test_fact_is_a_random_one(get: Get) -> None:
    answers = [get("/api/fact") for _ in range(20)]
    assert all(is_fact(answer) for answer in answers)
    assert len({answer.json()["fact"] for answer in answers}) > 1


@pytest.mark.parametrize("max_length", [min(map(len, FACTS)), 50, 10_000])
def test_max_length_holds(get: Get, max_length: int) -> None:
    for _ in range(5):
        answer = get("/api/fact", max_length=max_length)
        assert is_fact(answer)
        assert answer.json()["length"] <= max_length


@pytest.mark.parametrize("max_length", [min(map(len, FACTS)) - 1, 0, -1])
def test_no_fact_is_catfacts_own_answer(get: Get, max_length: int) -> None:
    answer = get("/api/fact", max_length=max_length)
    assert (answer.status_code, answer.json()) == (200, {})


@pytest.mark.parametrize("max_length", ["long", "1.5", ""])
def test_max_length_must_be_an_integer(get: Get, max_length: str) -> None:
    answer = get("/api/fact", max_length=max_length)
    assert answer.status_code == 400
    assert answer.json() == {"error": f"max_length: expected an integer, found {max_length!r}"}


@pytest.mark.parametrize("repository", REPOSITORIES, ids=lambda repository: repository["name"])
def test_repository_has_the_shape_of_github(repository: Repository) -> None:
    assert list(repository) == list(Repository.__annotations__)
    assert list(repository["owner"]) == list(Owner.__annotations__)
    assert repository["full_name"] == f"{repository['owner']['login']}/{repository['name']}"
    assert repository["html_url"] == f"https://github.com/{repository['full_name']}"
    assert repository["description"].strip()
    assert repository["language"] == "Python"
    for count in ("id", "stargazers_count", "forks_count", "open_issues_count"):
        assert type(repository[count]) is int and repository[count] > 0
    assert type(repository["archived"]) is bool
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", repository["created_at"])


def test_repositories_are_different_and_varied() -> None:
    assert len(REPOSITORIES) >= 10
    assert len({repository["id"] for repository in REPOSITORIES}) == len(REPOSITORIES)
    assert len({repository["full_name"].lower() for repository in REPOSITORIES}) == len(
        REPOSITORIES
    )
    archived = [repository["full_name"] for repository in REPOSITORIES if repository["archived"]]
    assert archived == ["PrefectHQ/prefect-docker"]


@pytest.mark.parametrize("change", [str, str.lower, str.upper], ids=["as is", "lower", "upper"])
@pytest.mark.parametrize("repository", REPOSITORIES, ids=lambda repository: repository["name"])
def test_repository_is_found_in_any_case(
    get: Get, repository: Repository, change: Callable[[str], str]
) -> None:
    answer = get(f"/api/repos/{change(repository['full_name'])}")
    assert (answer.status_code, answer.json()) == (200, repository)


@pytest.mark.parametrize("unknown", ["psf/nothing", "nobody/requests", "requests/psf"])
def test_unknown_repository_is_githubs_own_answer(get: Get, unknown: str) -> None:
    answer = get(f"/api/repos/{unknown}")
    assert (answer.status_code, answer.json()) == (404, {"message": "Not Found"})


@pytest.mark.parametrize("status", [400, 429, 503, 599])
def test_fault_status(get: Get, status: int) -> None:
    answer = get("/api/activity", fault_status=status)
    assert answer.status_code == status
    assert str(status) in answer.json()["error"]
    assert "Retry-After" not in answer.headers


def test_fault_retry_after(get: Get) -> None:
    answer = get("/api/activity", fault_status=429, fault_retry_after=7)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")


def test_fault_delay_holds_back_the_usual_answer(get: Get) -> None:
    start = time.monotonic()
    assert is_activity(get("/api/activity", fault_delay=0.3))
    assert time.monotonic() - start >= 0.3


def test_fault_delay_holds_back_another_fault(get: Get) -> None:
    start = time.monotonic()
    assert get("/api/activity", fault_delay=0.3, fault_status=500).status_code == 500
    assert time.monotonic() - start >= 0.3


def test_fault_delay_holds_back_no_one_else(get: Get) -> None:
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(get, "/api/activity", fault_delay=0.5)
        assert is_activity(get("/api/activity"))
        assert not slow.done()
        assert is_activity(slow.result())


def test_fault_body_not_json(get: Get) -> None:
    answer = get("/api/activity", fault_body="not-json")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    with pytest.raises(requests.JSONDecodeError):
        answer.json()


def test_fault_body_empty(get: Get) -> None:
    answer = get("/api/activity", fault_body="empty")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Type"] == "application/json"


def test_fault_body_wrong_shape(get: Get) -> None:
    answer = get("/api/activity", fault_body="wrong-shape")
    assert answer.status_code == 200
    assert answer.json().keys().isdisjoint(Activity.__annotations__)


def test_fault_body_empty_list(get: Get) -> None:
    answer = get("/api/users", fault_body="empty-list")
    assert (answer.status_code, answer.json()) == (200, [])


def test_fault_body_incomplete(get: Get) -> None:
    answer = get("/api/users", fault_body="incomplete")
    assert answer.status_code == 200
    [user] = answer.json()
    assert user.keys() < User.__annotations__.keys()


def test_fault_body_truncated(get: Get) -> None:
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"):
        get("/api/activity", fault_body="truncated")
    assert is_activity(get("/api/activity"))


def test_fault_body_may_come_with_a_status(get: Get) -> None:
    answer = get("/api/activity", fault_body="not-json", fault_status=502)
    assert (answer.status_code, answer.text) == (502, faults.BODIES["not-json"].content.decode())


def test_fault_times_applies_to_the_first_requests_of_a_key(get: Get, key: str) -> None:
    query = {"fault_status": 503, "fault_times": 2, "fault_key": key}
    assert [get("/api/activity", **query).status_code for _ in range(4)] == [503, 503, 200, 200]
    assert get("/api/activity", **query | {"fault_key": f"{key}-other"}).status_code == 503
    assert get("/api/activity", fault_status=503).status_code == 503


def test_fault_times_counts_requests_in_parallel_once_each(get: Get, key: str) -> None:
    query = {"fault_status": 503, "fault_delay": 0.2, "fault_times": 3, "fault_key": key}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: get("/api/activity", **query), range(8)))
    assert Counter(answer.status_code for answer in answers) == {503: 3, 200: 5}


def test_fault_times_keeps_the_filters(get: Get, key: str) -> None:
    query = {"type": "diy", "fault_body": "empty", "fault_times": 1, "fault_key": key}
    assert get("/api/activity", **query).content == b""
    assert get("/api/activity", **query).json()["type"] == "diy"


def test_counter_forgets_the_key_longest_unused() -> None:
    counter = faults.Counter(capacity=2)
    assert [counter.add(key) for key in "abacab"] == [1, 1, 2, 1, 3, 1]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/activity", 200),
        ("/api/users", 200),
        ("/api/fact", 200),
        ("/api/repos/psf/requests", 200),
        ("/api/repos/psf/nothing", 404),
        ("/api/not-there-yet", 404),
    ],
)
def test_faults_reach_every_api_route(get: Get, path: str, status: int) -> None:
    assert get(path).status_code == status
    assert get(path, fault_status=503).status_code == 503
    assert get(path, fault_body="empty").content == b""
    assert get(path, fault_unheard_of=1).status_code == 400


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"fault_status": 503},
        {"fault_delay": 120},
        {"fault_body": "truncated"},
        {"fault_status": "nonsense"},
        {"fault_unheard_of": 1},
    ],
    ids=str,
)
def test_health_is_immune(get: Get, query: dict[str, Any]) -> None:
    answer = get("/health", **query)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ({"fault_status": "abc"}, "an integer from 400 to 599, found 'abc'"),
        ({"fault_status": 399}, "an integer from 400 to 599, found '399'"),
        ({"fault_status": 600}, "an integer from 400 to 599, found '600'"),
        ({"fault_delay": "soon"}, "seconds from 0 to 120, found 'soon'"),
        ({"fault_delay": -1}, "seconds from 0 to 120, found '-1'"),
        ({"fault_delay": 120.1}, "seconds from 0 to 120, found '120.1'"),
        ({"fault_delay": "nan"}, "seconds from 0 to 120, found 'nan'"),
        ({"fault_body": "odd"}, "wrong-shape, empty-list, incomplete, truncated, found 'odd'"),
        ({"fault_status": 503, "fault_retry_after": "7.5"}, "found '7.5'"),
        ({"fault_retry_after": 7}, "together with fault_status"),
        ({"fault_times": 2}, "together with fault_key"),
        ({"fault_key": "alone"}, "together with fault_times"),
        ({"fault_times": "twice", "fault_key": "k"}, "found 'twice'"),
        ({"fault_times": -1, "fault_key": "k"}, "found '-1'"),
        ({"fault_times": 2, "fault_key": ""}, "1 to 100 characters"),
        ({"fault_times": 2, "fault_key": "k" * 101}, "1 to 100 characters"),
        ({"fault_stauts": 503}, "expected one of fault_status, fault_delay"),
    ],
    ids=str,
)
def test_bad_fault_parameters_are_refused(get: Get, query: dict[str, Any], problem: str) -> None:
    answer = get("/api/activity", **query)
    assert answer.status_code == 400
    assert problem in answer.json()["error"]
    assert answer.json()["expected"].keys() == faults.PARAMETERS.keys()


def test_all_bad_fault_parameters_are_named_at_once(get: Get) -> None:
    error = get("/api/activity", fault_status=1, fault_body="odd", fault_x=1).json()["error"]
    assert [problem.split(":")[0] for problem in error.split("; ")] == [
        "fault_status",
        "fault_body",
        "fault_x",
    ]


def test_a_refused_request_does_not_count(get: Get, key: str) -> None:
    query = {"fault_times": 1, "fault_key": key}
    assert get("/api/activity", **query, fault_status="abc").status_code == 400
    assert get("/api/activity", **query, fault_status=503).status_code == 503
