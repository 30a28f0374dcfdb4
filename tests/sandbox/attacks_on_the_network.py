"""Attacks over the network. There is none: no interface, and no system call that makes a socket with a name."""

# ruff: noqa: F821
# mypy: ignore-errors

from attacks import attack


@attack()
def connects_to_the_hosts_loopback():
    """A service of the host that trusts whoever is local."""
    socket.create_connection(("127.0.0.1", 22), timeout=1)
    return "connected"


@attack()
def sends_a_datagram():
    """Data out, without an answer."""
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 53))


@attack("gaierror|EPERM")
def asks_for_a_name():
    """DNS: the channel that is forgotten."""
    return socket.getaddrinfo("example.org", 80)


@attack()
def listens():
    """A door for somebody outside."""
    return socket.create_server(("0.0.0.0", 0))


@attack()
def talks_to_a_socket_of_the_host():
    """Docker's, the system bus's, systemd's."""
    socket.socket(socket.AF_UNIX).connect("/run/docker.sock")
    return "connected"


@attack()
def talks_to_an_abstract_socket():
    """Abstract names know no file system, only a network namespace."""
    socket.socket(socket.AF_UNIX).connect("\0offbeat-test-listener")
    return "connected"


@attack()
def leaves_an_abstract_socket():
    """For the next check to find."""
    socket.socket(socket.AF_UNIX).bind("\0left-behind")
    return "bound"


@attack()
def talks_to_the_kernel():
    """Netlink: interfaces, firewalls, audit."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)


@attack()
def sees_packets():
    """A raw packet socket."""
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)


@attack()
def talks_to_the_hypervisor():
    """vsock."""
    return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)


@attack()
def makes_a_socket_without_the_library():
    """The bare system call."""
    return system_call("socket", 2, 1, 0)


@attack()
def makes_a_pair_of_another_family():
    """socketpair(2) is allowed for one family."""
    return system_call("socketpair", 30, 1, 0, ctypes.create_string_buffer(8)) == 0
