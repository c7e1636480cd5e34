// DiTAC: a table of y on [a, b], made of theta, between tables of what y is outside, which never change.
#include <math.h>

#include "flow.h"
#include "table.h"

template <class T>
struct Ditac {
    // theta and its basis (cells + 1, d); the table has n points on [a, b]
    const T *theta, *basis;
    int64_t d, cells, n;
    // of the three zones: ends[4], counts[3], and whether y is T times ``weights`` (n,) or, where there are none, GELU(T)
    const double *ends, *weights;
    const int64_t* counts;
    T* pairs;  // of all pieces; those of the middle are made here

    int64_t doubles() const { return Flow::doubles(cells) + 16 * (cells + 1) + 3 * n + 24; }

    Flow flow(double* memory) const {
        Flow f(cells, memory);
        for (int64_t k = 0; k <= cells; k++) {
            double v = 0;
            for (int64_t j = 0; j < d; j++) v += (double)basis[k * d + j] * theta[j];
            f.velocity[k] = v;
        }
        f.prepare();
        return f;
    }
    // y at the points of the table, from T on [0, 1], in place; ``slopes``: dy/dT
    void respond(double* y, double* slopes) const {
        const double a = ends[1], length = ends[2] - ends[1];
        for (int64_t i = 0; i < n; i++) {
            double t = fma(length, y[i], a), cdf = weights ? weights[i] : 0.5 * erfc(-t * M_SQRT1_2);
            y[i] = t * cdf;
            slopes[i] = length * (weights ? cdf : cdf + t * exp(-0.5 * t * t) * 0.3989422804014327);
        }
    }
    static double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }

    void tabulate() const {
        Scratch scratch(doubles() * sizeof(double));
        double *y = scratch.as<double>(), *slopes = y + n + 8;
        flow(slopes + n + 8).forward(n, y);
        respond(y, slopes);
        const double per_width = (n - 1) / (ends[2] - ends[1]);
        T* pair = pairs + 2 * (1 + counts[0]);
        for (int64_t i = 0; i + 1 < n; i++) pair[2 * i] = (T)y[i], pair[2 * i + 1] = (T)((y[i + 1] - y[i]) * per_width);
    }
    Table<T> table() const {
        Table<T> t;
        t.zones = 3, t.pieces = 2, t.pairs = pairs;
        for (int k = 0; k < 4; k++) t.ends[k] = (T)ends[k];
        for (int k = 0; k < 3; k++) {
            t.first[k] = t.pieces - 1, t.count[k] = counts[k], t.pieces += counts[k];
            t.width[k] = counts[k] && t.ends[k + 1] > t.ends[k] ? (t.ends[k + 1] - t.ends[k]) / T(counts[k]) : 1;
            t.inverse[k] = 1 / t.width[k];
        }
        return t;
    }
    void gradient(const Cell* sums, T* dtheta) const {
        Scratch scratch((doubles() + cells + 1) * sizeof(double));
        double *y = scratch.as<double>(), *slopes = y + n + 8, *memory = slopes + n + 8;
        Flow f = flow(memory);
        double *lanes = memory + Flow::doubles(cells), *dvelocity = lanes + 16 * (cells + 1);
        if (weights)
            memset(y, 0, n * sizeof(double));  // dy/dT does not depend on T
        else
            f.forward(n, y);
        respond(y, slopes);
        const double per_width = (n - 1) / (ends[2] - ends[1]);
        const Cell* inside = sums + 1 + counts[0];
        double below = 0;
        for (int64_t i = 0; i < n; i++) {
            double value = i + 1 < n ? inside[i].x : 0, here = i + 1 < n ? inside[i].y * per_width : 0;
            slopes[i] *= value - here + below;
            below = here;
        }
        f.backward(n, slopes, lanes, dvelocity);
        for (int64_t j = 0; j < d; j++) {
            double total = 0;
            for (int64_t k = 0; k <= cells; k++) total += dvelocity[k] * basis[k * d + j];
            dtheta[j] = (T)total;
        }
    }
};

#define DITAC(suffix, T)                                                                                           \
    extern "C" void ditac_##suffix##_forward(int64_t size, int64_t threads, const T* x, T* y, const T* theta,      \
                                             const T* basis, int64_t d, int64_t cells, int64_t n, const double* ends, \
                                             const double* weights, const int64_t* counts, T* pairs) {            \
        Ditac<T> unit{theta, basis, d, cells, n, ends, weights, counts, pairs};                                    \
        unit.tabulate();                                                                                           \
        Table<T> table = unit.table();                                                                             \
        Lookup<T>{{1, 1, size}, threads, &table, x, x, y}.forward();                                               \
    }                                                                                                              \
    extern "C" void ditac_##suffix##_backward(int64_t size, int64_t threads, const T* x, T* dx, const T* theta,    \
                                              const T* basis, int64_t d, int64_t cells, int64_t n,                 \
                                              const double* ends, const double* weights, const int64_t* counts,    \
                                              T* pairs, const T* g, T* dtheta) {                                   \
        Ditac<T> unit{theta, basis, d, cells, n, ends, weights, counts, pairs};                                    \
        Table<T> table = unit.table();                                                                             \
        int64_t learnt[2] = {1 + counts[0], counts[0] + n};                                                        \
        Scratch scratch(table.pieces * sizeof(Cell));                                                              \
        Lookup<T>{{1, 1, size}, threads, &table, x, g, dx, learnt}.backward(scratch.as<Cell>());                   \
        unit.gradient(scratch.as<Cell>(), dtheta);                                                                 \
    }
DITAC(f32, float)
DITAC(f64, double)
