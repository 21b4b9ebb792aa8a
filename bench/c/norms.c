/* The baseline of bench_norms: the plain loop, free to reorder (compiled with -Ofast -march=native), nothing checked. */
#include <math.h>
#include <stdint.h>

void magnitudes(const double *d, const double *w, const int64_t *offsets, int64_t n, double *out)
{
    for (int64_t s = 0; s < n; s++) {
        double sum = 0;
        for (int64_t i = offsets[s]; i < offsets[s + 1]; i++) sum += w[i] * d[i] * d[i];
        out[s] = sqrt(sum);
    }
}
