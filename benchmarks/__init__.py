"""The benchmark. On a CPU sums are formed in as many pieces as XLA's pool has threads: always 4
here, whatever the machine, so that numbers depend on it as little as can be; as many as devices at
least. XLA reads this when JAX starts, which importing gymnax does.

On an accelerator products of matrices are in float32, as on a CPU, unless the environment variable
JAX_DEFAULT_MATMUL_PRECISION asks for another precision: results then say so.
"""

import os

import jax

os.environ.setdefault("NPROC", "4")
if jax.config.jax_default_matmul_precision is None:
    jax.config.update("jax_default_matmul_precision", "float32")
