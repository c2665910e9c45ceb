"""The benchmark. On a CPU sums are formed in as many pieces as XLA's pool has threads: always 4
here, whatever the machine, so that numbers depend on it as little as can be; as many as devices at
least. XLA reads this when JAX starts, which importing gymnax does.
"""

import os

os.environ.setdefault("NPROC", "4")
