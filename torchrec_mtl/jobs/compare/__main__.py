"""``python -m torchrec_mtl.jobs.compare``; the job is in `job`."""

import sys

from torchrec_mtl.jobs.compare.job import main

if __name__ == "__main__":
    sys.exit(main())
