"""
The types of configuration fields: what each accepts, and what it says about anything else.

Control side, used by `lb.config`. Each type turns a TOML value into what the program works with and raises an error
with a message and a hint otherwise; nothing here looks at other fields (`lb.config.rules` does) or at the machine.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from decimal import Decimal
from ipaddress import IPv6Address, ip_address, ip_interface
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

from lb.fields.schema import FORM, KIND, RANGE, UNIT
from lb.model.limits import HIGHEST_PORT, HIGHEST_WEIGHT, MOST_FLOWS, MOST_WORKERS
from lb.model.snapshot import Address, InterfaceAddress

NS_PER_UNIT = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
# What `parse_duration` accepts where a field says no more: below, a timer would only spin; above, it would never fire.
MIN_DURATION_NS = 10**6
MAX_DURATION_NS = 366 * 24 * 3600 * 10**9
# Digits are [0-9] in all patterns here: \d also matches those of other scripts, which no other tool would read.
DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|ms|s|m|h)")
DURATION_HINT = 'a number and a unit (ms, s, m or h): "500ms", "30s", "2h"'
ADDRESS_HINT = 'an IPv4 or IPv6 address: "198.18.1.100"'
MAC = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}")
MAC_HINT = 'six pairs of hex digits: "aa:aa:aa:00:00:31"'
# Names appear in `SERVICE/SERVER`, in metrics and in tables: no blanks, no slash.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
NAME_HINT = "letters, digits, '.', '_' and '-', at most 63, starting with a letter or digit"
# What the kernel accepts (IFNAMSIZ, dev_valid_name).
INTERFACE_NAME = re.compile(r"(?!\.{1,2}$)[^\s/:\x00-\x1f]{1,15}")
MAX_INTERFACE_NAME_BYTES = 15
INTERFACE_NAME_HINT = f"as `ip link` shows it, at most {MAX_INTERFACE_NAME_BYTES} bytes"
STATUS_RANGE = re.compile(r"([0-9]{3})(?:-([0-9]{3}))?")
MIN_STATUS, MAX_STATUS = 100, 599
EXPECT_HINT = 'a status such as 200, or a range: "200-399"'
# It is sent as it is written: what a request line cannot hold (RFC 9112 3.2; a fragment, "#", too) is refused here.
URL_PATH = re.compile(r"/[!\"$-~]{0,1023}")
FOLDER_HINT = 'a directory from the root on: "/var/lib/flowlb"'
URL_PATH_HINT = 'printable ASCII without blanks and "#" that starts with a slash, at most 1024 characters: "/health"'
TYPE_NAMES = {
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "an array",
    dict: "a table",
}
CUSTOM_ERROR = "lb"


def invalid(message: str, hint: str = "") -> PydanticCustomError:
    """Return the error for a value that a field does not accept. `hint`: what it accepts."""
    return PydanticCustomError(CUSTOM_ERROR, "{message}", {"message": message, "hint": hint})


def show(value: object) -> str:
    """Return a value as TOML would write it, shortened."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return "{...}" if isinstance(value, dict) else "[...]"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def type_name(value: object) -> str:
    """Return what TOML calls the type of a value."""
    return TYPE_NAMES.get(type(value), "a date or time")


def require_string(value: object, hint: str) -> str:
    """Return a string as it is; raise for anything else."""
    if not isinstance(value, str):
        raise invalid(f"{show(value)} is {type_name(value)}, not a string", hint)
    return value


def parse_duration(value: object, low_ns: int = MIN_DURATION_NS, high_ns: int = MAX_DURATION_NS) -> int:
    """
    Return a duration such as "500ms" in nanoseconds.

    Args:
        value: as TOML has it.
        low_ns: the shortest that is allowed, in nanoseconds.
        high_ns: the longest.

    Raises:
        PydanticCustomError: a ValueError: it is no duration, or not in that range.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise invalid(f"{value} has no unit", f'"{value}s" if seconds are meant')
    match = DURATION.fullmatch(require_string(value, DURATION_HINT))
    if match is None:
        raise invalid(f"{show(value)} is not a duration", DURATION_HINT)
    duration_ns = int(Decimal(match[1]) * NS_PER_UNIT[match[2]])
    if not low_ns <= duration_ns <= high_ns:
        allowed = f"{format_duration(low_ns)}..{format_duration(high_ns)}"
        raise invalid(f"{show(value)} is not in {allowed}", f"a duration in {allowed}")
    return duration_ns


def martian(address: Address) -> str | None:
    """Return why no host can have an address, or None when one can."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return "an IPv4-mapped address"
    if address.version == 4 and address == address.__class__("255.255.255.255"):
        return "the broadcast address"
    if address.is_unspecified or (address.version == 4 and address.packed[0] == 0):
        return "an unspecified address"
    reasons = {
        "a loopback address": address.is_loopback,
        "a multicast address": address.is_multicast,
        "a link-local address": address.is_link_local,
        "a reserved address": address.version == 4 and address.is_reserved,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def plain_address(text: str) -> Address:
    """
    Return an IP address as packets carry it.

    Raises:
        ValueError: it is none, or has a zone: `fe80::1%eth0` equals no address of a packet.
    """
    if "%" in text:
        raise ValueError(f"{show(text)} has a zone")
    return ip_address(text)


def parse_address(value: object) -> Address:
    """Return a unicast address that a host can have."""
    return _parse_address_text(require_string(value, ADDRESS_HINT))


@functools.lru_cache(maxsize=2**15)
def _parse_address_text(text: str) -> Address:
    """Return an address. Remembered: a file's checks ask several times, and a reload asks for the same again."""
    try:
        address = ip_address(text)
    except ValueError:
        raise invalid(f"{show(text)} is not an IP address", ADDRESS_HINT) from None
    if "%" in text:
        raise invalid(f"{show(text)} has a zone", "an address without %interface")
    if (reason := martian(address)) is not None:
        raise invalid(f"{text} is {reason}", "a unicast address of a host")
    return address


def parse_listen_address(value: object) -> Address:
    """Return an address of this machine to listen on: loopback and the unspecified one too."""
    hint = 'an IPv4 or IPv6 address: "127.0.0.1"'
    text = require_string(value, hint)
    try:
        address = ip_address(text)
    except ValueError:
        raise invalid(f"{show(value)} is not an IP address", hint) from None
    # A link-local address means nothing without its interface; no other address has one.
    if "%" in text and not address.is_link_local:
        raise invalid(f"{show(value)} has a zone", "an address without %interface")
    if address.is_multicast or address == ip_address("255.255.255.255"):
        raise invalid(f"{text} is not an address of a host", hint)
    return address


def parse_interface_address(value: object) -> InterfaceAddress:
    """Return an address with its prefix length."""
    hint = 'an address with its prefix length: "198.18.1.1/24"'
    text = require_string(value, hint)
    if "/" not in text:
        raise invalid(f"{show(value)} has no prefix length", hint)
    try:
        interface = ip_interface(text)
    except ValueError:
        raise invalid(f"{show(value)} is not an address with a prefix length", hint) from None
    if "%" in text:
        raise invalid(f"{show(value)} has a zone", "an address without %interface: the table names the interface")
    # An interface's own link-local address is normal; the other martians are not.
    if (reason := martian(interface.ip)) is not None and not interface.ip.is_link_local:
        raise invalid(f"{interface.ip} is {reason}", "a unicast address of a host")
    return interface


def parse_mac(value: object) -> bytes:
    """Return the 6 bytes of a unicast MAC address."""
    text = require_string(value, MAC_HINT)
    if not MAC.fullmatch(text):
        raise invalid(f"{show(value)} is not a MAC address", MAC_HINT)
    mac = bytes.fromhex(text.replace(":", ""))
    if mac[0] & 1:
        raise invalid(f"{show(value)} is a group address", "a unicast MAC address: the first byte is even")
    if not any(mac):
        raise invalid(f"{show(value)} is not a host's address", MAC_HINT)
    return mac


def format_mac(mac: bytes) -> str:
    """Return a MAC address as people write it."""
    return mac.hex(":")


def format_endpoint(address: object, port: object) -> str:
    """Return an address and a port as people write them: `198.18.1.100:80`, `[2001:db8::1]:80`."""
    text = str(address)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def format_duration(duration_ns: int) -> str:
    """Return a duration as a configuration has it, in the largest unit that needs no fraction."""
    largest_first = sorted(NS_PER_UNIT.items(), key=lambda unit: -unit[1])
    unit, unit_ns = next((unit, unit_ns) for unit, unit_ns in largest_first if duration_ns % unit_ns == 0)
    return f"{duration_ns // unit_ns}{unit}"


def format_expect(expect: tuple[int, int]) -> str:
    """Return a range of HTTP status codes as a configuration has it."""
    low, high = expect
    return str(low) if low == high else f"{low}-{high}"


def parse_expect(value: object) -> tuple[int, int]:
    """Return the range of HTTP status codes that pass a check, both ends included: from 200 or "200-399"."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    match = STATUS_RANGE.fullmatch(require_string(value, EXPECT_HINT))
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not MIN_STATUS <= low <= high <= MAX_STATUS:
        raise invalid(f"{show(value)} is not an HTTP status or range of them", EXPECT_HINT)
    return low, high


def parse_url_path(value: object) -> str:
    """Return the path of a URL, with its query if there is one."""
    text = require_string(value, URL_PATH_HINT)
    if not URL_PATH.fullmatch(text):
        raise invalid(f"{show(value)} is not the path of a URL", URL_PATH_HINT)
    return text


def parse_folder(value: object) -> str:
    """Return the absolute path of a directory."""
    text = require_string(value, FOLDER_HINT)
    if not text.startswith("/") or "\0" in text:
        raise invalid(f"{show(value)} is no absolute path", FOLDER_HINT)
    return text


def parse_interface_name(value: object) -> str:
    """Return the name of an interface."""
    text = matching(INTERFACE_NAME, INTERFACE_NAME_HINT)(value)
    if len(text.encode()) > MAX_INTERFACE_NAME_BYTES:
        raise invalid(f"{show(value)} is not a valid name", INTERFACE_NAME_HINT)
    return text


def matching(pattern: re.Pattern[str], hint: str) -> Callable[[object], str]:
    """Return a validator for strings that match a pattern."""

    def check(value: object) -> str:
        text = require_string(value, hint)
        if not pattern.fullmatch(text):
            raise invalid(f"{show(value)} is not a valid name", hint)
        return text

    return check


def in_range(low: int, high: int) -> Callable[[object], int]:
    """Return a validator for integers from `low` to `high`."""

    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise invalid(f"{show(value)} is {type_name(value)}, not an integer", f"an integer in {low}..{high}")
        if not low <= value <= high:
            raise invalid(f"{value} is not in {low}..{high}")
        return value

    return check


def integer(low: int, high: int, unit: str = "") -> tuple[BeforeValidator, WithJsonSchema]:
    """Return what makes an `Annotated[int, ...]` a field for integers from `low` to `high`. `unit`: what they count."""
    schema: dict[str, Any] = {"type": "integer", "minimum": low, "maximum": high}
    return BeforeValidator(in_range(low, high)), WithJsonSchema(schema | ({UNIT: unit} if unit else {}))


def _text(parse: Callable[[object], Any], kind: str = "string", **more: str) -> tuple[BeforeValidator, WithJsonSchema]:
    """Return the validator and the JSON Schema of a value that is written as text. `more`: keywords of its schema."""
    return BeforeValidator(parse), WithJsonSchema({"type": "string", KIND: kind, **more})


def timespan(low: str, high: str) -> tuple[BeforeValidator, WithJsonSchema, PlainSerializer]:
    """Return what makes an `Annotated[int, ...]` a field for durations from `low` to `high`, in nanoseconds."""
    low_ns, high_ns = parse_duration(low, 1), parse_duration(high)
    parse = functools.partial(parse_duration, low_ns=low_ns, high_ns=high_ns)
    words = {"pattern": f"^{DURATION.pattern}$", RANGE: f"{low}..{high}"}
    return *_text(parse, "duration", **words), PlainSerializer(format_duration, when_used="json")


Seed = Annotated[int, *integer(0, 2**64 - 1)]
Port = Annotated[int, *integer(1, HIGHEST_PORT)]
Weight = Annotated[int, *integer(0, HIGHEST_WEIGHT)]
IcmpRate = Annotated[int, *integer(0, 1_000_000, "packets/s")]
FlowRate = Annotated[int, *integer(1, 1_000_000, "flows/s")]
FlowBurst = Annotated[int, *integer(1, 1_000_000, "flows")]
PrefixLength = Annotated[int, *integer(0, 32, "bits")]
PrefixLength6 = Annotated[int, *integer(0, 128, "bits")]
Workers = Annotated[int, *integer(1, MOST_WORKERS)]
Count = Annotated[int, *integer(1, 100)]
Concurrency = Annotated[int, *integer(1, 65_536)]
Capacity = Annotated[int, *integer(1, MOST_FLOWS, "flows")]
# From the smallest that every IPv4 link carries (RFC 791) to the largest IP packet.
MIN_MTU_BYTES, MAX_MTU_BYTES = 68, 65535
Mtu = Annotated[int, *integer(MIN_MTU_BYTES, MAX_MTU_BYTES, "bytes")]
parse_mtu = in_range(MIN_MTU_BYTES, MAX_MTU_BYTES)
Name = Annotated[str, *_text(matching(NAME, NAME_HINT), "name", **{FORM: NAME_HINT})]
InterfaceName = Annotated[str, *_text(parse_interface_name, "name", **{FORM: INTERFACE_NAME_HINT})]
ListenAddress = Annotated[Address, *_text(parse_listen_address, "address", **{FORM: "IPv4 or IPv6, of this machine"})]
HostAddress = Annotated[Address, *_text(parse_address, "address", **{FORM: "IPv4 or IPv6, unicast"})]
PrefixedAddress = Annotated[
    InterfaceAddress, *_text(parse_interface_address, "address", **{FORM: "IPv4 or IPv6, with its prefix length"})
]
Text = Annotated[str, *_text(functools.partial(require_string, hint="a string"))]
MacAddress = Annotated[
    bytes, *_text(parse_mac, "MAC address", **{FORM: "unicast"}), PlainSerializer(format_mac, when_used="json")
]
# What each kind of duration may be: the one place. Shorter ones would keep the machine busy with nothing else.
Duration = Annotated[int, *timespan("1ms", "8784h")]
# Idle times of flows: what is forgotten sooner than a segment is sent again is never remembered at all.
FlowTimeout = Annotated[int, *timespan("1s", "8784h")]
CheckTime = Annotated[int, *timespan("10ms", "24h")]
# A ramp is looked at ten times a second.
RampTime = Annotated[int, *timespan("100ms", "24h")]
PlanInterval = Annotated[int, *timespan("10ms", "24h")]
# New flows wait for it.
AskDeadline = Annotated[int, *timespan("100us", "1s")]
Folder = Annotated[str, *_text(parse_folder, **{FORM: FOLDER_HINT})]
UrlPath = Annotated[str, *_text(parse_url_path, **{FORM: URL_PATH_HINT})]
Expect = Annotated[
    tuple[int, int],
    BeforeValidator(parse_expect),
    PlainSerializer(format_expect, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer", "minimum": MIN_STATUS, "maximum": MAX_STATUS}, {"type": "string"}],
            KIND: "HTTP status",
            RANGE: f"{MIN_STATUS}..{MAX_STATUS}",
            FORM: EXPECT_HINT,
        }
    ),
]

__all__ = [
    "CUSTOM_ERROR",
    "AskDeadline",
    "Capacity",
    "CheckTime",
    "Concurrency",
    "Count",
    "Duration",
    "Expect",
    "FlowBurst",
    "FlowRate",
    "FlowTimeout",
    "Folder",
    "HostAddress",
    "IcmpRate",
    "InterfaceName",
    "ListenAddress",
    "MacAddress",
    "Mtu",
    "Name",
    "PlanInterval",
    "Port",
    "PrefixLength",
    "PrefixLength6",
    "PrefixedAddress",
    "RampTime",
    "Seed",
    "Text",
    "UrlPath",
    "Weight",
    "Workers",
    "format_duration",
    "format_endpoint",
    "format_mac",
    "integer",
    "invalid",
    "martian",
    "parse_address",
    "parse_interface_address",
    "parse_mac",
    "parse_mtu",
    "plain_address",
    "show",
    "type_name",
]
