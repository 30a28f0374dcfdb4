"""Who may speak to whom: CURVE on every socket, one key pair a role, an allow-list at whoever listens.

`python -m protocol.keys DIR` makes the keys. A process that has called `lock` opens no socket without them: a listener
admits the roles that it names and knows by the key which of them speaks, a connection knows by the listener's key that
it has reached the right one. The handshake is libzmq's (CurveZMQ: perfect forward secrecy, no certificate authority),
the check of keys pyzmq's authenticator. Without keys anybody who can reach a port can speak.
"""

import atexit
import ipaddress
import logging
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from urllib.parse import urlsplit

import zmq
from zmq.auth import create_certificates, load_certificate
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from protocol.address import FILE
from protocol.clock import Deadline
from protocol.connections import HANDSHAKE_FAILED
from protocol.options import option

log = logging.getLogger("security")

MODES = ("auto", "curve", "none")
ROLES = ("broker", "learner", "actor", "verifier")
BROKEN_OFF = 5  # handshakes in a row that end without a word


class InsecureKeys(ValueError):
    """Keys that cannot be used; the text names the file and the cure."""


@dataclass(kw_only=True, slots=True)
class SecurityConfig:
    """Who may take part in the run."""

    mode: str = option(
        "auto", "`curve`: only holders of keys; `none`: anybody; `auto`: `curve` unless the broker is on loopback"
    )
    key_directory: str = option("", "keys of the roles, made by `python -m protocol.keys DIR`")


def check_security(config: SecurityConfig) -> None:
    """Refuse what is no mode. Raises `ValueError`."""
    if config.mode not in MODES:
        raise ValueError(f"security.mode={config.mode}: must be one of {', '.join(MODES)}")


def is_loopback(address: str) -> bool:
    """Whether nobody outside this host can reach `address`; what a file will name may be anywhere."""
    if address.startswith(FILE):
        return False
    parts = urlsplit(address)
    if parts.scheme != "tcp":
        return True
    host = parts.hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def wanted(mode: str, broker: str) -> bool:
    """Whether sockets are to be locked; `broker` is the address of the run."""
    return mode == "curve" or (mode == "auto" and not is_loopback(broker))


@dataclass(frozen=True, slots=True)
class Keys:
    """What one role holds: its own pair, and the public keys of the others. Keys are Z85 texts as bytes."""

    role: str
    public: bytes
    secret: bytes = field(repr=False)
    known: Mapping[str, bytes]  # role → public key

    def admits(self, roles: Collection[str]) -> Mapping[bytes, str]:
        """The allow-list of a listener: public key → role."""
        return MappingProxyType({key: role for role, key in self.known.items() if role in roles})


def make(directory: Path) -> None:
    """Write a key pair for each role. Raises `InsecureKeys` when one is there already."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    names = [name for role in ROLES for name in (f"{role}.key", f"{role}.key_secret")]
    for name in names:
        if (directory / name).exists():
            raise InsecureKeys(f"{directory / name}: is there already; choose another directory, or remove it")
    with TemporaryDirectory(dir=directory) as private:  # which nobody else may enter: secrets are never readable
        for role in ROLES:
            _, secret = create_certificates(private, role)
            Path(secret).chmod(0o600)
        for name in names:
            (Path(private) / name).rename(directory / name)


def load(directory: Path, role: str) -> Keys:
    """The keys of `role`: its own secret one and the public ones. Raises `InsecureKeys`."""
    public, secret = _read(directory / f"{role}.key_secret")
    if secret is None:
        raise InsecureKeys(f"{directory / f'{role}.key_secret'}: holds no secret key; make keys anew")
    known = {other: _read(path)[0] for other in ROLES if (path := directory / f"{other}.key").exists()}
    if known.get(role) != public:
        raise InsecureKeys(f"{directory}: {role}.key and {role}.key_secret are not a pair; make keys anew")
    return Keys(role, public, secret, MappingProxyType(known))


def _read(path: Path) -> tuple[bytes, bytes | None]:
    if not path.is_file():
        raise InsecureKeys(f"{path}: is missing; make keys by `python -m protocol.keys {path.parent}`")
    if path.suffix == ".key_secret" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InsecureKeys(f"{path}: others may read it; chmod 600 {path}")
    try:
        public, secret = load_certificate(path)
    except (OSError, ValueError) as error:
        raise InsecureKeys(f"{path}: is no key: {error}; make keys anew") from None
    for key in (public, secret):
        if key is not None and len(key) != 40:  # 32 bytes in Z85
            raise InsecureKeys(f"{path}: is no key: {len(key)} characters instead of 40; make keys anew")
    return public, secret


# ---------------------------------------------------------------- this process

_in_use: Keys | None = None
_authenticator: ThreadAuthenticator | None = None


def lock(config: SecurityConfig, broker: str, role: str) -> None:
    """From now on every socket of this process is locked, if the configuration wants it. Raises `ValueError`."""
    global _in_use
    check_security(config)
    _in_use = None
    if not wanted(config.mode, broker):
        if not is_loopback(broker):
            log.warning("security.mode=none: anybody who can reach %s may join this run", broker)
        return
    if not config.key_directory:
        raise InsecureKeys(
            f"security.key_directory: sockets are to be locked (security.mode={config.mode}, broker at {broker}) and "
            "no keys are given; make some by `python -m protocol.keys DIR` and give every role "
            "security.key_directory=DIR, or say security.mode=none"
        )
    _in_use = load(Path(config.key_directory), role)


def in_use() -> Keys | None:
    """The keys with which this process opens sockets."""
    return _in_use


def listen(socket: "zmq.Socket[bytes]", keys: Keys, roles: Iterable[str]) -> Mapping[bytes, str]:
    """Lock a socket before it is bound: only `roles` come in. Returns who they are, by public key."""
    admitted = keys.admits(set(roles))
    domain = f"offbeat-{id(socket)}"
    _guard().configure_curve_callback(domain, _AllowList(admitted))
    socket.curve_secretkey = keys.secret
    socket.curve_publickey = keys.public
    socket.curve_server = True
    socket.zap_domain = domain.encode()
    return admitted


def connect(socket: "zmq.Socket[bytes]", keys: Keys, listener: str) -> None:
    """Lock a socket before it connects: it will only speak to the role `listener`. Raises `InsecureKeys`."""
    if listener not in keys.known:
        raise InsecureKeys(f"{listener}.key is missing beside the keys of the {keys.role}; copy it there")
    socket.curve_secretkey = keys.secret
    socket.curve_publickey = keys.public
    socket.curve_serverkey = keys.known[listener]


def mismatch(address: str, keys: Keys | None, listener: str, *, seconds: float = 1.0) -> str:
    """Why `address` and this process do not come to terms, in words; empty if they do, or if nobody is there.

    It tries to connect, for `seconds` at most. A connection that breaks off in silence may do so by chance; only one
    that always does means something.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    patience, broken_off = Deadline(seconds), 0
    with context.socket(zmq.DEALER) as probe:
        probe.setsockopt(zmq.LINGER, 0)
        if keys:
            connect(probe, keys, listener)
        with probe.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | HANDSHAKE_FAILED) as monitor:
            probe.connect(address)
            event = 0
            while not event and broken_off < BROKEN_OFF and monitor.poll(round(1000 * patience.remaining)):
                event = recv_monitor_message(monitor)["event"]
                if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                    event, broken_off = 0, broken_off + 1
            probe.disable_monitor()  # before its reader goes, for whom libzmq would wait
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        locked = "is locked, and this process has no keys" if keys is None else "has no keys, and this process has"
        return f"the {listener} there {locked}: give both the same security.mode and security.key_directory"
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH and keys:
        return f"the {listener} there does not admit the key of this {keys.role}: are the keys of one making?"
    if broken_off >= BROKEN_OFF and keys:
        return f"who listens there does not hold the key of {listener}.key: are the keys of one making?"
    return ""


@dataclass(frozen=True, slots=True)
class _AllowList:
    """What pyzmq's authenticator asks."""

    admitted: Mapping[bytes, str]

    def callback(self, domain: str, key: bytes) -> bool:
        return key in self.admitted


def _guard() -> ThreadAuthenticator:
    """The one thread of this process that checks keys."""
    global _authenticator
    if _authenticator is None:
        _authenticator = ThreadAuthenticator(zmq.Context.instance())
        _authenticator.start()
        atexit.register(_authenticator.stop)
    return _authenticator
