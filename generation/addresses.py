"""Which addresses a host name stands for, and which of them are anybody's on the internet."""

import ipaddress
import os
import queue
import socket
import threading
import time
from contextlib import suppress

LOOK_UPS_AT_ONCE = 32

# Source: IANA IPv4 and IPv6 Special-Purpose Address Registries, read 2026-11-20
_NOT_PUBLIC_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # behind a carrier's NAT; one cloud's metadata are here
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's metadata, though the address looks like any other
        "169.254.0.0/16",  # the metadata of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # another cloud's metadata are here
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
# All that is given out. IPv4 addresses in disguise (mapped, compatible, NAT64), local, link-local
# and multicast addresses are outside of it.
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # for protocols; Teredo, which wraps IPv4, among them
        "2001:db8::/32",
        "2002::/16",  # 6to4, which wraps IPv4
        "3fff::/20",
    )
)


def is_public(address: str) -> bool:
    """Tell whether this is an address that anybody on the internet may have."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv4Address):
        return not any(parsed in network for network in _NOT_PUBLIC_V4)
    return parsed in _GLOBAL_V6 and not any(parsed in network for network in _NOT_PUBLIC_V6)


class _Slots:
    """Counts the look-ups that run; none do in a forked child."""

    def __init__(self) -> None:
        self.reset()
        os.register_at_fork(after_in_child=self.reset)

    def reset(self) -> None:
        self.free = threading.BoundedSemaphore(LOOK_UPS_AT_ONCE)


_slots = _Slots()


def look_up(host: str, port: int, *, timeout_s: float) -> list[str]:
    """Return the addresses of a host, in the order in which to try them.

    Raises socket.gaierror when there are none, and TimeoutError when the resolver takes longer
    than `timeout_s`. Nothing can stop the resolver itself: it is asked in a thread that ends when
    it answers, at the latest when its own patience (/etc/resolv.conf) is over. So many threads at
    most; who finds them all busy waits for one as long as for an answer.
    """
    host = host.strip("[]")
    with suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    ends_at = time.monotonic() + timeout_s
    free = _slots.free
    if not free.acquire(timeout=max(0.0, timeout_s)):
        raise TimeoutError("too many host names are being looked up")
    answers: queue.SimpleQueue[list[str] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except OSError as error:
            answers.put(error)
        except ValueError:  # a character or a label that no name can have
            answers.put(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
        finally:
            free.release()

    threading.Thread(target=ask, name="look-up", daemon=True).start()
    try:
        answer = answers.get(timeout=max(0.0, ends_at - time.monotonic()))
    except queue.Empty:
        raise TimeoutError("the host name was not resolved in time") from None
    if isinstance(answer, OSError):
        raise answer
    return answer
