"""The command `dnge`."""

import os

# Before torch is loaded: threads that sleep at a barrier cost nothing, spinning ones cost minutes where other jobs
# share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
