"""Where the broker is by now, as far as this process knows. Memory only: `lookout` asks, `link` and `sync` connect."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from upnext.engine.redis.endpoint import Endpoint

Node = tuple[str, int]

_remembered: dict[tuple[Node, ...], tuple[Node, ...]] = {}
"""Nodes of a cluster by the nodes of its URL: when all that the URL names are gone, clients made later know where to look, too."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one sentinel, or one node of a cluster, says: `node` has our data. Of two that differ the higher `rank` is the newer word."""

    rank: tuple[int, int]
    node: Node
    others: tuple[Node, ...] = ()


def newest(answers: Iterable[Answer]) -> Answer | None:
    """The first of those with the highest rank."""
    return max(answers, key=lambda answer: answer.rank, default=None)


class Places:
    """Addresses to try, in order. Reads and writes are single assignments: threads may share it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.home: Node | None = None
        """The node that has our data, by a MOVED reply or a sentinel."""
        self._good: Node | None = None
        self._poor: tuple[Node, ...] = ()

    @property
    def elsewhere(self) -> bool:
        """Whether sentinels or other nodes can be asked for another address."""
        return self.endpoint.sentinel is not None or self.endpoint.cluster

    def candidates(self) -> list[Node]:
        """Home, then the node that answered last, then the others; those that failed last come last."""
        known = dict.fromkeys([*self.endpoint.nodes, *self._learned()])
        ordered = [node for node in (self.home, self._good) if node is not None]
        ordered += [node for node in known if node not in self._poor]
        ordered += self._poor
        return list(dict.fromkeys(ordered))

    def follow(self, node: Node) -> None:
        self.home = node
        self._poor = tuple(other for other in self._poor if other != node)

    def resolve(self, address: Node) -> Node:
        """The address in a MOVED: an empty host means the host that sent it."""
        host, port = address
        return host or (self.home or self._good or self.endpoint.nodes[0])[0], port

    def reached(self, node: Node) -> None:
        """It let us in."""
        self._good = node
        self._poor = tuple(other for other in self._poor if other != node)

    def avoid(self, node: Node | None) -> None:
        """It can't be reached or doesn't serve: the others are asked first."""
        if node is None:
            return
        if self.home == node:
            self.home = None
        if self._good == node:
            self._good = None
        self._poor = (*(other for other in self._poor if other != node), node)

    def learn(self, nodes: Sequence[Node]) -> None:
        """The nodes of the cluster."""
        _remembered[self.endpoint.nodes] = tuple(nodes)
        self._poor = tuple(node for node in self._poor if node in nodes or node in self.endpoint.nodes)

    def _learned(self) -> tuple[Node, ...]:
        return _remembered.get(self.endpoint.nodes, ()) if self.endpoint.cluster else ()
