# The servers of the world (see world.rs): names, an echo, web pages. Started as root of a host:
#
#     python3 -c THIS dns@192.0.2.1 http@198.51.100.1 echo@198.51.100.1 far.example.test=198.51.100.1 ...
#
# A service and its address, with #PORT if it is not the usual one; a name and one of its addresses. Returns when all listen, and leaves the servers behind.
# With Debian's python3-minimal: no more than sockets and threads.
import os
import socket
import struct
import sys
import threading

A, AAAA = 1, 28
NO_SUCH_NAME = 3
PORTS = {"dns": 53, "echo": 7, "http": 80}
names = {}


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def dns(query, peer):
    """One question, answered with authority (RFC 1035, 4.1)."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode().lower())
        at += query[at] + 1
    question = query[12 : at + 5]
    kind = struct.unpack(">H", query[at + 1 : at + 3])[0]
    addresses = names.get(".".join(labels))
    wanted = {A: socket.AF_INET, AAAA: socket.AF_INET6}.get(kind)
    found = [a for a in addresses or [] if family(a) == wanted]
    header = struct.pack(">HHHHH", 0x8580 | (0 if addresses else NO_SUCH_NAME), 1, len(found), 0, 0)
    packed = [socket.inet_pton(wanted, a) for a in found]
    records = [struct.pack(">HHHIH", 0xC00C, kind, 1, 5, len(p)) + p for p in packed]
    return query[:2] + header + question + b"".join(records)


def echo(line, peer):
    return b"heard " + line.strip() + b" from " + peer.encode() + b"\n"


def http(head, peer):
    path = head.split()[1]
    body = path + b" for " + peer.encode() + b"\n"
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def read(stream, service):
    if service == "dns":
        size = struct.unpack(">H", stream.recv(2, socket.MSG_WAITALL))[0]
        return stream.recv(size, socket.MSG_WAITALL)
    end, data = (b"\r\n\r\n" if service == "http" else b"\n"), b""
    while end not in data:
        more = stream.recv(65536)
        if not more:
            break
        data += more
    return data


def streams(listener, service):
    def one(stream, peer):
        with stream:
            answer = globals()[service](read(stream, service), peer)
            stream.sendall(struct.pack(">H", len(answer)) + answer if service == "dns" else answer)

    while True:
        stream, peer = listener.accept()
        threading.Thread(target=one, args=(stream, peer[0])).start()


def datagrams(listener, service):
    while True:
        data, peer = listener.recvfrom(65536)
        try:
            listener.sendto(globals()[service](data, peer[0]), peer)
        except (OSError, LookupError, struct.error, UnicodeError):
            pass  # What makes no sense, or has gone, gets no answer.


servers = []
for word in sys.argv[1:]:
    if "=" in word:
        name, address = word.split("=")
        names.setdefault(name, []).append(address)
        continue
    service, address = word.split("@")
    address, _, port = address.partition("#")
    kinds = [(socket.SOCK_STREAM, streams), (socket.SOCK_DGRAM, datagrams)]
    for kind, serve in kinds[: 1 if service == "http" else 2]:
        listener = socket.socket(family(address), kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, int(port or PORTS[service])))
        if kind == socket.SOCK_STREAM:
            listener.listen(64)
        servers.append((serve, listener, service))

if os.fork():
    os._exit(0)
os.setsid()
nothing = os.open("/dev/null", os.O_RDWR)
for number in 0, 1, 2:
    os.dup2(nothing, number)
for serve, listener, service in servers:
    threading.Thread(target=serve, args=(listener, service)).start()
