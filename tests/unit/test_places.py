"""Where to look for the broker, in which order."""

from __future__ import annotations

from upnext.engine.redis.endpoint import parse_url
from upnext.engine.redis.places import Answer, Places, newest

A, B, C, D = ("a", 1), ("b", 1), ("c", 1), ("d", 1)


def test_home_first_and_those_that_failed_last() -> None:
    places = Places(parse_url("redis+cluster://a:1,b:1,c:1"))
    assert places.candidates() == [A, B, C]
    places.reached(B)
    assert places.candidates() == [B, A, C]
    places.follow(C)
    assert places.candidates() == [C, B, A]
    places.avoid(C)
    assert (places.home, places.candidates()) == (None, [B, A, C])
    places.avoid(B)
    assert places.candidates() == [A, C, B]
    places.follow(B)
    assert places.candidates() == [B, A, C]


def test_every_node_has_its_turn_while_none_serves() -> None:
    places = Places(parse_url("redis+cluster://a:1,b:1,c:1"))
    first: list[tuple[str, int]] = []
    for _ in range(6):
        first.append(places.candidates()[0])
        places.avoid(first[-1])
    assert first == [A, B, C, A, B, C]


def test_nodes_of_a_cluster_are_remembered_for_clients_made_later() -> None:
    url = "redis+cluster://remembered:1"
    Places(parse_url(url)).learn([A, D])
    later = Places(parse_url(url))
    assert later.candidates() == [("remembered", 1), A, D]
    later.avoid(("remembered", 1))
    assert later.candidates() == [A, D, ("remembered", 1)]
    assert Places(parse_url("redis://remembered:1")).candidates() == [("remembered", 1)]


def test_an_empty_host_is_the_one_that_said_it() -> None:
    places = Places(parse_url("redis+cluster://a:1"))
    places.reached(B)
    assert (places.resolve(("", 7)), places.resolve(("x", 7))) == (("b", 7), ("x", 7))


def test_the_newest_word_counts() -> None:
    stale, leader, same = Answer((3, 0), A), Answer((3, 1), B), Answer((3, 0), C)
    assert newest([stale, leader, same]) is leader
    assert newest([leader, Answer((4, 0), C)]) == Answer((4, 0), C)
    assert newest([]) is None
