"""All benchmarks, each in a process of its own, and then the table: see the package's docstring."""

from __future__ import annotations

import subprocess
import sys
import time

from .record import REPOSITORY, SCRATCH, folder, load, parser
from .table import promises

NAMES = ("start_up", "kernels", "peer_torch", "breakdown", "first_picture", "memory", "quality")
NAMES += ("poses", "trained_on", "panoramas", "video", "mesh", "noisy_poses", "dtu", "viewer")


def main() -> int:
    """Run what is asked for; the exit code is that of the worst."""
    made = parser(__doc__)
    made.add_argument("--full", action="store_true", help="everything, over an hour; rewrites the committed results")
    made.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="some of them")
    options = made.parse_args()
    options.quick = not options.full
    words = ["--quick"] if options.quick else []
    words += ["--out", str(options.out.resolve())] if options.out else []
    words += ["--data", str(options.data.resolve())] if options.data else []
    failed = []
    for name in options.only:
        start = time.perf_counter()
        print(f"--- {name}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *words], cwd=REPOSITORY, check=False)
        print(f"    {time.perf_counter() - start:.0f} s", flush=True)
        if done.returncode != 0:
            failed.append(name)
    if options.quick or options.out:
        print(f"\nQuick measurements; the records are in {folder(options)}.\n" if options.quick else "")
        print(promises(load(options.out or SCRATCH), only_measured=True))
    else:
        subprocess.run([sys.executable, "-m", "benchmarks.table"], cwd=REPOSITORY, check=True)
    if failed:
        print(f"These failed: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
