"""What belongs to the whole process."""

from __future__ import annotations

import threading

# Random generators and torch's switches are the process's, and transformers and diffusers patch
# torch while they load: a second load beside it would break every later one.
ONE_AT_A_TIME = threading.RLock()
