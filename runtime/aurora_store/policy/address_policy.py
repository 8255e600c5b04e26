"""Which network addresses a client may connect to on behalf of somebody else.

Why: whoever creates a speculator chooses the operator's endpoint. Without a policy, the operator could be sent to the
node's metadata service, to its own loopback, or to any Service of the cluster.

Invariants: a host name is resolved once, and the addresses that were checked are those that are connected to. So a name
that resolves to another address the next time gains nothing. An address that carries an IPv4 address inside (mapped,
6to4, NAT64) is judged by that address.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

Network = IPv4Network | IPv6Network
_NAT64: Final = IPv6Network("64:ff9b::/96")
_PLATFORM_SERVICES: Final = (IPv4Network("168.63.129.16/32"), IPv4Network("192.0.0.0/24"))
"""Services of a cloud for its virtual machines (Azure, Oracle), at addresses that Python calls public."""


@dataclass(frozen=True)
class AddressPolicy:
    """Public addresses are allowed. Others need an entry.

    An entry for a host name covers the host's private addresses. It covers no link-local or loopback address: these
    need an entry for a network that lies within their range.
    """

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()
    """Lower-case host names."""

    @classmethod
    def of(cls, entries: Iterable[str]) -> AddressPolicy:
        """The policy for host names, addresses and networks (CIDR). Raises :class:`ValueError` for any other entry.

        A network may be given by any of its addresses: 10.96.0.1/12 is 10.96.0.0/12.
        """
        networks, hosts = list[Network](), set[str]()
        for entry in entries:
            if (entry[:1].isdigit() and entry.replace(".", "").replace("/", "").isdigit()) or ":" in entry:
                networks.append(ip_network(entry, strict=False))
            elif "/" in entry or not entry:
                raise ValueError(f"{entry!r} is neither a host name nor a network such as 10.96.0.0/12")
            else:
                hosts.add(_normal(entry))
        return cls(tuple(networks), frozenset(hosts))

    def allows(self, host: str, address: str) -> bool:
        """Whether a connection to ``address`` is allowed. ``host`` resolved to ``address``."""
        found = _embedded(ip_address(address.partition("%")[0]))
        entries = [network for network in self.networks if found in network]
        if found.is_link_local or found.is_loopback:
            return any(network.is_link_local or network.is_loopback for network in entries)
        if entries or _normal(host) in self.hosts:
            return True
        of_platform = any(found in network for network in _PLATFORM_SERVICES)
        return found.is_global and not found.is_multicast and not of_platform

    def allowed_addresses(self, host: str, port: int) -> list[str]:
        """The addresses of ``host`` that are allowed, in the resolver's order. Raises :class:`socket.gaierror`."""
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = dict.fromkeys(str(answer[4][0]) for answer in answers)
        return [address for address in addresses if self.allows(host, address)]


def _normal(host: str) -> str:
    return host.lower().rstrip(".")


def _embedded(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address inside an IPv6 address, or ``address`` itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
