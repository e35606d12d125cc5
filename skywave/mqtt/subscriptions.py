"""What a link subscribes, and what of it the broker grants."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.subscribeoptions import SubscribeOptions

from .properties import words_of
from .trouble import Trouble

SUBSCRIBE_AGAIN_S = 30.0


class Subscriptions:
    """The subscriptions of the present connection; those of ``always`` are made on each. One that the broker refuses is asked
    for again every half minute.

    Any thread may subscribe. A ``client`` of None is no connection: then nothing is asked for.
    """

    def __init__(self, always: Iterable[str], trouble: Trouble) -> None:
        self._always = list(always)
        self._trouble = trouble
        self._lock = threading.Lock()
        self._options: dict[str, SubscribeOptions] = {}  # by subscription
        self._asked: dict[int, list[str]] = {}  # by packet id, until the broker answers
        self._again: dict[str, float] = {}  # refused ones: when to ask again

    def begin(self, client: paho.Client) -> None:
        """Asks for what every connection subscribes."""
        self.add(client, self._always)

    def add(
        self, client: paho.Client | None, topics: Iterable[str], qos: int = 1, retain_as_published: bool = False
    ) -> None:
        """See ``Link.subscribe``."""
        options = SubscribeOptions(qos=qos, retainAsPublished=retain_as_published)
        wanted = list(topics)
        self._options.update(dict.fromkeys(wanted, options))
        self._ask(client, wanted)

    def remove(self, client: paho.Client | None, topics: Iterable[str]) -> None:
        """See ``Link.unsubscribe``."""
        ended = list(topics)
        with self._lock:
            for topic in ended:
                self._again.pop(topic, None)
        for topic in ended:
            self._trouble.granted(f"subscribe {topic}")
        if client:
            client.unsubscribe(ended)

    def ask_again(self, client: paho.Client | None, now: float) -> None:
        """Asks for what was refused half a minute ago."""
        if self._again:
            with self._lock:
                due = [topic for topic, at in self._again.items() if at <= now]
                for topic in due:
                    del self._again[topic]
            self._ask(client, due)

    def forget(self) -> None:
        """A new connection has no subscriptions and owes no answers."""
        with self._lock:
            self._asked.clear()
            self._again.clear()

    def _ask(self, client: paho.Client | None, wanted: list[str]) -> None:
        if wanted and client:
            with self._lock:  # so that the answer does not come before it is known to what
                _, packet_id = client.subscribe([(topic, self._options[topic]) for topic in wanted])
                if packet_id is not None:
                    self._asked[packet_id] = wanted

    def answered(self, _client: paho.Client, _data: Any, packet_id: int, reasons: list[Any], properties: Any) -> None:
        """The broker's answer: paho's ``on_subscribe``."""
        with self._lock:
            topics = self._asked.pop(packet_id, [])
        for topic, reason in zip(topics, reasons, strict=False):
            if not reason.is_failure or topic.startswith("$SYS/"):  # what a broker tells of itself is nobody's right
                self._trouble.granted(f"subscribe {topic}")
                continue
            words = f"the broker answers the subscription of {topic} with {words_of(reason, properties)}"
            self._trouble.refused(f"subscribe {topic}", words)
            with self._lock:
                self._again[topic] = time.monotonic() + SUBSCRIBE_AGAIN_S
