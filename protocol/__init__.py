"""What two Offbeat processes must agree on, and nothing else: messages, their encoding, sockets, clock.

Imports only the standard library, msgpack, zmq and numpy, so that every role can load it in milliseconds.
"""
