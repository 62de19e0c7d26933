"""`python -m shmwasm` is the command `shmwasm`."""

from shmwasm.cli import main

if __name__ == "__main__":
    main(prog_name="shmwasm")
