"""`python -m shmwasm.coordinator --socket-fd N`: the private coordinator of the client at the other end of descriptor N."""

from __future__ import annotations

import argparse

from shmwasm.coordinator.program import serve_privately


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m shmwasm.coordinator", description=__doc__)
    parser.add_argument("--socket-fd", type=int, required=True, metavar="N", help="a connected SOCK_SEQPACKET socket")
    serve_privately(parser.parse_args().socket_fd)


if __name__ == "__main__":
    main()
