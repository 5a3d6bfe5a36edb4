"""Robertson's problem with its gradient by diffrax, in an interpreter of its own; needs jax and diffrax, not sciopt.

    python diffrax_robertson.py rates.npy out.npz 1e-6 1e-10

``rates.npy``: rate constants ``(batch, 3)``. ``out.npz``: ``value`` ``(batch, 3)`` at t = 100, ``grad`` of the sum of
``y1 + 1e4 y2`` in the rate constants, ``seconds`` of three warm runs.
"""

from __future__ import annotations

import os
import sys
import time


def main(rates: str, out: str, rtol: float, atol: float) -> None:
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"  # before jax is there
    import diffrax  # pyright: ignore[reportMissingImports]
    import jax  # pyright: ignore[reportMissingImports]
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    import numpy as np

    jax.config.update("jax_enable_x64", True)

    def field(t, y, k):
        first, second, third = k[0] * y[0], k[1] * y[1] ** 2, k[2] * y[1] * y[2]
        return jnp.stack([third - first, first - second - third, second])

    def solve(k):
        return diffrax.diffeqsolve(
            *(diffrax.ODETerm(field), diffrax.Kvaerno5(), 0.0, 100.0, 1e-4, jnp.array([1.0, 0.0, 0.0]), k),
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
            max_steps=4096,
        ).ys[-1]

    def loss(rates):
        y = jax.vmap(solve)(rates)
        return (y[:, 0] + 1e4 * y[:, 1]).sum(), y

    run = jax.jit(jax.grad(loss, has_aux=True))
    k = jnp.asarray(np.load(rates))
    grad, value = jax.block_until_ready(run(k))
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        grad, value = jax.block_until_ready(run(k))
        seconds.append(time.perf_counter() - begin)
    np.savez(out, value=np.asarray(value), grad=np.asarray(grad), seconds=np.asarray(seconds))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
