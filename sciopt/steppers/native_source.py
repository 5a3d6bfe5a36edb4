"""C source of the fused step: everything of an adaptive explicit step but the right-hand side."""

from __future__ import annotations

__all__ = ["SOURCE"]

SOURCE = r"""
#include <math.h>
#include <stdint.h>

#define CHUNK 1024 /* numbers that are worked on together: they stay in the first cache */

#define STEP(REAL, NAME)                                                                                              \
                                                                                                                      \
typedef struct {                                                                                                      \
    int64_t rows, n, stages, direction;                                                                               \
    const REAL *a, *c, *e; /* a: rows of the table, each padded to the number of stages */                            \
    REAL rtol, atol, worst, limit, power, remembered, shrink, grow, span, eps;                                        \
    int64_t tiny; /* set: how many rows go on with a step that may be too small to be one */                          \
} NAME##_plan;                                                                                                        \
                                                                                                                      \
/* out = base + (sum of w[j] k[j], j < count), the sum first; k: (count, size); no base: zero */                      \
static void NAME##_combine(int64_t count, int64_t size, const REAL *w, const REAL *k, const REAL *base,               \
                           REAL *restrict out) {                                                                      \
    for (int64_t from = 0; from < size; from += CHUNK) {                                                              \
        const int64_t to = from + CHUNK < size ? from + CHUNK : size;                                                 \
        for (int64_t m = from; m < to; m++) out[m] = w[0] * k[m];                                                     \
        for (int64_t j = 1; j < count; j++) {                                                                         \
            const REAL weight = w[j], *restrict one = k + j * size;                                                   \
            if (weight != 0) for (int64_t m = from; m < to; m++) out[m] += weight * one[m];                           \
        }                                                                                                             \
        if (base) for (int64_t m = from; m < to; m++) out[m] += base[m];                                              \
    }                                                                                                                 \
}                                                                                                                     \
                                                                                                                      \
static void NAME##_scale(int64_t rows, int64_t n, const REAL *slope, const REAL *h, REAL *restrict out) {             \
    for (int64_t r = 0; r < rows; r++) {                                                                              \
        const REAL step = h[r];                                                                                       \
        for (int64_t m = r * n; m < (r + 1) * n; m++) out[m] = slope[m] * step;                                       \
    }                                                                                                                 \
}                                                                                                                     \
                                                                                                                      \
/* k: h times the slopes (stages, rows, n); slope: of stage i; moved: the point of stage i + 1 */                     \
void NAME##_stage(const NAME##_plan *p, int64_t i, const REAL *slope, const REAL *h, const REAL *y, REAL *k,          \
                  REAL *moved) {                                                                                      \
    const int64_t size = p->rows * p->n;                                                                              \
    NAME##_scale(p->rows, p->n, slope, h, k + i * size);                                                              \
    NAME##_combine(i + 1, size, p->a + i * p->stages, k, y, moved);                                                   \
}                                                                                                                     \
                                                                                                                      \
/* instants: times of the stages 1 .. (stages - 1, rows); then the first stage */                                     \
void NAME##_begin(const NAME##_plan *p, const REAL *t, const REAL *h, const REAL *y, const REAL *start, REAL *k,      \
                  REAL *instants, REAL *moved) {                                                                      \
    for (int64_t i = 0; i < p->stages - 1; i++)                                                                       \
        for (int64_t r = 0; r < p->rows; r++) instants[i * p->rows + r] = t[r] + p->c[i] * h[r];                      \
    NAME##_stage(p, 0, start, h, y, k, moved);                                                                        \
}                                                                                                                     \
                                                                                                                      \
/* now, next: t, left, h, memory (its logarithm), ratio, each (rows); returns how many rows go on */                  \
int64_t NAME##_finish(NAME##_plan *p, const REAL *slope, const REAL *now, const REAL *y, const REAL *start,           \
                      const REAL *end, REAL *k, const REAL *moved, REAL *restrict next, REAL *restrict new_y,         \
                      REAL *restrict new_start, uint8_t *accept, int64_t *accepted) {                                 \
    const int64_t n = p->n, rows = p->rows, size = rows * n, last = p->stages - 1;                                    \
    const REAL *left = now + rows, *h = now + 2 * rows, *memory = now + 3 * rows;                                     \
    const REAL low = log((REAL)1e-4 * p->limit), high = log(p->limit);                                                \
    int64_t running = 0, tiny = 0;                                                                                    \
    NAME##_scale(rows, n, slope, h, k + last * size);                                                                 \
    NAME##_combine(p->stages, size, p->e, k, 0, new_y); /* the error, until it is read */                             \
    for (int64_t r = 0; r < rows; r++) {                                                                              \
        REAL total = 0;                                                                                               \
        for (int64_t m = r * n; m < (r + 1) * n; m++) {                                                               \
            const REAL before = fabs(y[m]), after = fabs(moved[m]); /* NaN in moved is NaN in the error */            \
            const REAL part = new_y[m] / (p->atol + p->rtol * (before > after ? before : after));                     \
            total += part * part;                                                                                     \
        }                                                                                                             \
        const REAL norm = sqrt(total), ratio = norm < p->worst ? norm : p->worst; /* the worst for NaN */             \
        const int good = ratio <= p->limit;                                                                           \
        const REAL size_of = log(ratio), rest = good ? left[r] - h[r] : left[r];                                      \
        REAL factor = exp(p->power * size_of + memory[r]);                                                            \
        factor = factor < p->shrink ? p->shrink : factor > p->grow ? p->grow : factor;                                \
        REAL step = h[r] * factor;                                                                                    \
        if (p->direction > 0) step = step < rest ? step : rest;                                                       \
        else if (p->direction < 0) step = step > rest ? step : rest;                                                  \
        else step = fabs(step) >= fabs(rest) ? rest : step;                                                           \
        next[r] = end[r] - rest;                                                                                      \
        next[rows + r] = rest;                                                                                        \
        next[2 * rows + r] = step;                                                                                    \
        next[3 * rows + r] = p->remembered * (size_of < low ? low : size_of > high ? high : size_of);                 \
        next[4 * rows + r] = ratio;                                                                                   \
        accept[r] = good;                                                                                             \
        accepted[r] += good;                                                                                          \
        running += step != 0;                                                                                         \
        const REAL smallest = p->eps * fabs(next[r]);                                                                 \
        tiny += step != 0 && fabs(step) <= (smallest > p->span ? smallest : p->span);                                 \
        for (int64_t m = r * n; m < (r + 1) * n; m++) {                                                               \
            new_y[m] = good ? moved[m] : y[m];                                                                        \
            new_start[m] = good ? slope[m] : start[m];                                                                \
        }                                                                                                             \
    }                                                                                                                 \
    p->tiny = tiny;                                                                                                   \
    return running;                                                                                                   \
}

STEP(double, f64)
STEP(float, f32)
"""
