"""Work that only takes time, for `bench_executors.py`: `python -m sleeping SECONDS FILE`."""

import sys
import time
from pathlib import Path

if __name__ == "__main__":
    time.sleep(float(sys.argv[1]))
    Path(sys.argv[2]).touch()
