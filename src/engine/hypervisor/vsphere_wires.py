"""Which network each card of a machine is in, and whether its wire is plugged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import UnsupportedError
from . import vsphere_devices as devices
from .base import Machine
from .vsphere_inventory import Networks
from .vsphere_note import FormerCard

NONE = "none"


class Wires:
    """Changes of network cards, as parts of a ConfigSpec."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    def network(self, machine: Machine, said: str) -> str:
        """What a card is to be connected to: the machine's own word first."""
        wanted = said if machine.network is None else machine.network
        if wanted == "user":
            raise UnsupportedError(
                'vSphere has no network "user"', 'name one of its networks, or "none"'
            )
        # What was said for this start is a network here, and nothing to be translated.
        return wanted if wanted == NONE or machine.network else self._networks.target(wanted)

    def wanted(self, has: Sequence[Any], machine: Machine) -> list[Any]:
        """The changes for a machine that has its own cards already.

        Without a word of the machine they stay as they are. Their MACs always do.
        """
        cards = devices.cards(has)
        if machine.network is not None and not machine.cards:
            nets = dict.fromkeys(range(len(cards)), self.network(machine, NONE))
            by_number = dict(enumerate(cards))
        elif machine.cards:
            nets = {
                number: self.network(machine, card.network)
                for number, card in enumerate(machine.cards)
            }
            macs = {number: card.mac for number, card in enumerate(machine.cards)}
            by_number = devices.rank_by_mac(cards, macs)
        else:
            return []
        changes = []
        for number, name in nets.items():
            plugged = name != NONE
            if number in by_number:
                backing = self._networks.backing(name) if plugged else None
                card = by_number[number]
                changes.append(devices.rewire(card, backing, plugged, plugged, running=False))
        known = {card.key for card in by_number.values()}
        changes += [  # a card that nothing is said of gets no wire
            devices.rewire(card, None, False, False, running=False)
            for card in cards
            if card.key not in known
        ]
        return [change for change in changes if change is not None]

    def remember(self, has: Sequence[Any]) -> list[FormerCard]:
        """How the cards are now."""
        return [
            FormerCard(
                card.key,
                devices.backing_name(card),
                bool(card.connectable and card.connectable.connected),
                bool(card.connectable is None or card.connectable.startConnected),
            )
            for card in devices.cards(has)
        ]

    def former(self, has: Sequence[Any], cards: Sequence[FormerCard]) -> list[Any]:
        """The changes after which the cards are as they were; one that is gone is left out."""
        by_key = {card.key: card for card in devices.cards(has)}
        changes = [
            devices.rewire(
                by_key[was.key],
                self._networks.backing(was.network) if was.network else None,
                was.connected,
                was.start_connected,
                running=False,
            )
            for was in cards
            if was.key in by_key
        ]
        return [change for change in changes if change is not None]

    def unplug(self, has: Sequence[Any], running: bool) -> list[Any]:
        """The changes that pull all wires."""
        changes = [
            devices.rewire(card, None, False, False, running=running) for card in devices.cards(has)
        ]
        return [change for change in changes if change is not None]
