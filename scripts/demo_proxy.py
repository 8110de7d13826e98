"""A stand-in for the mesh proxy of scripts/demo.

Usage: demo_proxy.py UID PORT...

Runs as the given user and group, listens on the ports, says "ready", and answers every connection
with the destination that it had before it was redirected.
"""

import os
import select
import signal
import socket
import struct
import sys

# linux/netfilter_ipv4.h
SO_ORIGINAL_DST = 80


def original_destination(connection):
    # struct sockaddr_in: family, port and address, then eight bytes of padding.
    name = connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
    port, address = struct.unpack("!2xH4s8x", name)
    return f"{socket.inet_ntoa(address)}:{port}"


def main():
    # Ctrl-C in the demo ends this process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    uid, *ports = map(int, sys.argv[1:])
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    listeners = [socket.create_server(("0.0.0.0", port)) for port in ports]
    print("ready", flush=True)
    while True:
        for listener in select.select(listeners, [], [])[0]:
            connection, client = listener.accept()
            with connection:
                port = listener.getsockname()[1]
                line = f"redirected to port {port}, original destination "
                line += f"{original_destination(connection)}, from {client[0]}"
                connection.sendall(f"{line}\n".encode())


main()
