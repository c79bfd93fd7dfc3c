"""Feed a reader with mutated files.

    python -m tools.fuzz READER [--seconds N]      with atheris, which looks for new paths
    python -m tools.fuzz READER --count N          without it: mutated at random, seeded

READER is one of the names in `readers.READERS`, or `all` with --count. What makes a reader raise
anything but its refusals is written to `crash-READER` and ends the run with exit code 1.
"""

import argparse
import sys
import traceback
from pathlib import Path

from benchmarks.rows import record
from tools.fuzz.readers import READERS, Reader, mutations


def at_random(name: str, reader: Reader, *, seed: int, count: int) -> int:
    """Read so many mutated files. Returns how many were refused or read; raises where one broke."""
    done = 0
    seeds = reader.seeds()
    for number, good in enumerate(seeds):
        for data in mutations(good, seed + number, count // len(seeds), reader.mend):
            try:
                reader(data)
            except BaseException:
                Path(f"crash-{name}").write_bytes(data)
                raise
            done += 1
    return done


def with_atheris(name: str, reader: Reader, seconds: int) -> None:
    """Let atheris look for files that take new paths. Never returns."""
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install atheris, or use --count to do without it")
    corpus = Path(f"corpus-{name}")
    corpus.mkdir(exist_ok=True)
    for number, good in enumerate(reader.seeds()):
        (corpus / f"seed{number}").write_bytes(good)
    atheris.instrument_all()
    options = [f"-max_total_time={seconds}", f"-artifact_prefix=crash-{name}-", "-timeout=10"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], reader)
    atheris.Fuzz()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("reader", choices=[*READERS, "all"])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--count", type=int, default=0, help="do without atheris")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.count:
        if options.reader == "all":
            parser.error("atheris takes one reader at a time")
        with_atheris(options.reader, READERS[options.reader], options.seconds)
        return 0
    broken = files = 0
    for name in READERS if options.reader == "all" else [options.reader]:
        try:
            done = at_random(name, READERS[name], seed=options.seed, count=options.count)
        except Exception:
            traceback.print_exc()
            print(f"{name}: broken by the file crash-{name}")
            broken += 1
        else:
            files += done
            print(f"{name}: {done} mutated files, each read or refused")
    what = f"of {len(READERS)} readers, {files:,} mutated files read: broken"
    record("fuzz", what, "readers", broken, "limit: none", None, "0")
    return min(broken, 1)


if __name__ == "__main__":
    sys.exit(main())
