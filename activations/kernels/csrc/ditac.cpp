// DiTAC: a table of y on [a, b], made of theta, in a longer one of what y is outside, which never changes.
#include <math.h>

#include "abi.h"
#include "flow.h"
#include "table.h"

// what does not change while a unit is trained; tabulated.py has the same
struct Frame {
    int64_t points, parts;  // on [a, b] where y is computed, and pieces between two of them
    int64_t before, after;  // pieces of the table, those left of a and the others, a tail each
    int64_t d, cells;
    double a, b;
    const double* weights;  // (points,), y is T times it; or, where there are none, GELU(T)

    Frame(const double* numbers, const double* weights)
        : points((int64_t)numbers[0]), parts((int64_t)numbers[1]), before((int64_t)numbers[2]), after((int64_t)numbers[3]),
          d((int64_t)numbers[4]), cells((int64_t)numbers[5]), a(numbers[6]), b(numbers[7]), weights(weights) {}
};

template <class T>
struct Ditac {
    using Path = Flow<sizeof(T) == 4>;
    const Frame f;
    const T *theta, *basis;  // (d,), (cells + 1, d)
    T* pairs;                // of all pieces; those on [a, b] are made here
    double *time, *way;      // (points,) each, what the flow leaves for its gradient

    int64_t n() const { return f.points; }
    double per_width() const { return (n() - 1) / (f.b - f.a); }
    // room for two numbers a point, for the flow and for two numbers a cell
    int64_t doubles() const { return 2 * (n() + 8) + Path::doubles(f.cells) + 2 * (f.cells + 1); }

    Path flow(double* memory) const {
        Path flow(f.cells, memory, n());
        for (int64_t k = 0; k <= f.cells; k++) {
            double v = 0;
            for (int64_t j = 0; j < f.d; j++) v += (double)basis[k * f.d + j] * theta[j];
            flow.velocity[k] = v;
        }
        flow.prepare();
        return flow;
    }
    // y at the points of the table, from T on [0, 1], in place; ``slopes``: dy/dT
    void respond(double* y, double* slopes) const {
        const double length = f.b - f.a;
        for (int64_t i = 0; i < n() && f.weights; i++)
            y[i] = fma(length, y[i], f.a) * f.weights[i], slopes[i] = length * f.weights[i];
        for (int64_t i = 0; i < n() && !f.weights; i++) {
            double t = fma(length, y[i], f.a), cdf = 0.5 * erfc(-t * M_SQRT1_2);
            y[i] = t * cdf;
            slopes[i] = length * (cdf + t * ::exp(-0.5 * t * t) * 0.3989422804014327);
        }
    }

    void tabulate() const {
        Scratch scratch(doubles() * sizeof(double), false);
        double *y = scratch.as<double>(), *slopes = y + n() + 8;
        flow(slopes + n() + 8).forward(y, time, way);
        respond(y, slopes);
        const double part = 1.0 / f.parts, per = per_width();
        T* pair = pairs + 2 * f.before;
        for (int64_t i = 0; i + 1 < n() && f.parts == 1; i++)
            pair[2 * i] = (T)y[i], pair[2 * i + 1] = (T)((y[i + 1] - y[i]) * per);
        for (int64_t i = 0; i + 1 < n() && f.parts > 1; i++)
            for (int64_t k = 0; k < f.parts; k++, pair += 2)
                pair[0] = (T)(y[i] + k * part * (y[i + 1] - y[i])), pair[1] = (T)((y[i + 1] - y[i]) * per);
    }
    Table<T> table() const {
        return {(T)f.a, (T)((f.b - f.a) / ((n() - 1) * f.parts)), f.before, f.after, (T)f.b, learnt(), pairs};
    }
    int64_t learnt() const { return (n() - 1) * f.parts; }  // pieces
    Lookup<T> lookup(int64_t size, int64_t threads, const Table<T>& table, const T* x, const T* g, T* out) const {
        return {{1, 1, size}, threads, &table, x, g, out, learnt()};
    }
    void gradient(const Cell* sums, T* dtheta) const {
        Scratch scratch(doubles() * sizeof(double), false);
        double *y = scratch.as<double>(), *slopes = y + n() + 8, *memory = slopes + n() + 8;
        Path flow = this->flow(memory);
        double *passed = memory + Path::doubles(f.cells), *dvelocity = passed + f.cells + 1;
        if (!f.weights) flow.forward(y, time, way);  // dy/dT depends on T
        respond(y, slopes);
        const double per = per_width(), part = 1 / (per * f.parts);
        memset(passed, 0, 2 * (f.cells + 1) * sizeof(double));
        double below = 0;
        for (int64_t i = 0; i < n(); i++) {
            double value = 0, here = 0;  // of the height at this point, and of the slope on its right
            if (i + 1 < n()) value = sums->x, here = sums->y, sums++;
            for (int64_t k = 1; k < f.parts && i + 1 < n(); k++, sums++)
                value += sums->x, here += fma(k * part, sums->x, sums->y);
            here *= per;
            slopes[i] *= value - here + below;
            below = here;
        }
        flow.backward(time, way, slopes, passed, dvelocity);
        for (int64_t j = 0; j < f.d; j++) {
            double total = 0;
            for (int64_t k = 0; k <= f.cells; k++) total += dvelocity[k] * basis[k * f.d + j];
            dtheta[j] = (T)total;
        }
    }
};

// ``made``: time and way, then the pairs of all pieces, of which ``frame`` has those outside [a, b]
#define DITAC(suffix, T)                                                                                          \
    static Ditac<T> ditac_##suffix(const double* numbers, const double* weights, const T* basis, const T* theta,  \
                                   double* made) {                                                                \
        const Frame f(numbers, weights);                                                                          \
        return {f, theta, basis, (T*)(made + 2 * f.points), made, made + f.points};                               \
    }                                                                                                             \
    extern "C" void ditac_##suffix##_forward(const double* numbers, const double* weights, const T* basis,       \
                                             const T* pairs, int64_t threads, const T* theta, double* made,       \
                                             int64_t size, const T* x, T* y) {                                    \
        const auto unit = ditac_##suffix(numbers, weights, basis, theta, made);                                   \
        const Table<T> table = unit.table();                                                                      \
        const int64_t right = table.before + unit.learnt();                                                       \
        memcpy(unit.pairs, pairs, 2 * table.before * sizeof(T));                                                  \
        memcpy(unit.pairs + 2 * right, pairs + 2 * right, 2 * (table.pieces() - right) * sizeof(T));              \
        unit.tabulate();                                                                                          \
        unit.lookup(size, threads, table, x, x, y).forward();                                                     \
    }                                                                                                             \
    extern "C" void ditac_##suffix##_backward(const double* numbers, const double* weights, const T* basis,      \
                                              const T* pairs, int64_t threads, const T* theta, double* made,      \
                                              int64_t size, const T* x, T* dx, const T* g, T* dtheta) {           \
        const auto unit = ditac_##suffix(numbers, weights, basis, theta, made);                                   \
        const Table<T> table = unit.table();                                                                      \
        Scratch scratch(unit.learnt() * sizeof(Cell));                                                            \
        unit.lookup(size, threads, table, x, g, dx).backward(scratch.as<Cell>());                                 \
        unit.gradient(scratch.as<Cell>(), dtheta);                                                                \
    } \
    SIGNATURE(ditac_##suffix##_forward) \
    SIGNATURE(ditac_##suffix##_backward)
DITAC(f32, float)
DITAC(f64, double)

// ---- T at points from end to end of any line, for tables that are made in torch

// ``kept``: two numbers a point that the gradient needs
template <class T>
static void cpab(int64_t cells, int64_t n, const double* ends, const T* velocity, double* kept, T* heights, const T* down,
                 T* dvelocity, double* dends) {
    using Path = Flow<sizeof(T) == 4>;
    Scratch scratch((Path::doubles(cells) + n + 8 + 2 * (cells + 1)) * sizeof(double));
    double *y = scratch.as<double>(), *passed = y + n + 8, *gradient = passed + cells + 1;
    Path flow(cells, gradient + cells + 1, n, ends[0], ends[1]);
    for (int64_t k = 0; k <= cells; k++) flow.velocity[k] = velocity[k];
    flow.prepare();
    if (heights) {
        flow.forward(y, kept, kept + n);
        for (int64_t i = 0; i < n; i++) heights[i] = (T)y[i];
        return;
    }
    for (int64_t i = 0; i < n; i++) y[i] = down[i];
    if (dends) dends[0] = dends[1] = 0;
    flow.backward(kept, kept + n, y, passed, gradient, dends);
    for (int64_t k = 0; k <= cells; k++) dvelocity[k] = (T)gradient[k];
}

#define CPAB(suffix, T)                                                                                            \
    extern "C" void cpab_##suffix##_forward(int64_t cells, int64_t n, const double* ends, const T* velocity,      \
                                            double* kept, T* heights) {                                            \
        cpab<T>(cells, n, ends, velocity, kept, heights, nullptr, nullptr, nullptr);                               \
    }                                                                                                              \
    extern "C" void cpab_##suffix##_backward(int64_t cells, int64_t n, const double* ends, const T* velocity,     \
                                             double* kept, const T* down, T* dvelocity, double* dends) {           \
        cpab<T>(cells, n, ends, velocity, kept, nullptr, down, dvelocity, dends);                                  \
    } \
    SIGNATURE(cpab_##suffix##_forward) \
    SIGNATURE(cpab_##suffix##_backward)
CPAB(f32, float)
CPAB(f64, double)
