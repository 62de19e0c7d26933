"""Run by `python -m benchmarks`; and imported by the processes that multiprocessing spawns, which must find it light."""

if __name__ == "__main__":
    from benchmarks.command import main

    main(prog_name="python -m benchmarks")
