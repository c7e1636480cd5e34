#include "abi.h"
#include "table.h"

// ---- one zone with learnt ends, heights and tails: PWLU

template <class T>
struct Curves {  // (units, segments + 5), each left, right, heights, slope_left, slope_right
    int64_t units, segments;
    T narrowest;  // the ends are at least narrowest * max(1, |left|) apart
    const T* all;

    int64_t each() const { return segments + 5; }
    // ``own``: the share of its gradient that goes to the right end itself; a tie halves it, as in torch.maximum
    T end(const T* curve, double& own) const {
        const T left = curve[0], right = curve[1], reach = left < 0 ? -left : left;
        T least = left + narrowest * (reach > 1 ? reach : T(1));
        own = right < least ? 0 : right == least ? 0.5 : 1;
        return own > 0 ? right : least;
    }
    // ``pairs`` has room for units * (segments + 2) of them
    void tabulate(Table<T>* tables, T* pairs) const {
        const int64_t n = segments;
        for (int64_t u = 0; u < units; u++) {
            double own;
            const T *curve = all + u * each(), *height = curve + 2, *slopes = height + n + 1;
            T* pair = pairs + 2 * u * (n + 2);
            const T right = end(curve, own), width = (right - curve[0]) / T(n);
            tables[u] = {curve[0], width, 1, n + 1, right, n, pair};
            pair[0] = fma(-slopes[0], width, height[0]), pair[1] = slopes[0];
            for (int64_t i = 0; i < n; i++) pair[2 * i + 2] = height[i], pair[2 * i + 3] = (height[i + 1] - height[i]) / width;
            pair[2 * n + 2] = height[n], pair[2 * n + 3] = slopes[1];
        }
    }
    // of the curve whose sums are ``s``
    void gradient(const Table<T>& table, const T* curve, const Cell* s, T* out) const {
        const int64_t n = segments;
        const T *height = curve + 2, *slopes = height + n + 1;
        double own;
        const double width = ((double)end(curve, own) - curve[0]) / n;
        double dl = -slopes[0] * s[0].x, dr = -slopes[1] * s[n + 1].x, below = 0;
        for (int64_t i = 0; i <= n; i++) {
            double here = i < n ? s[i + 1].y / width : 0;  // of the slope on the right of knot i
            double value = s[i + 1].x + (i == 0 ? s[0].x : 0);
            out[2 + i] = (T)(value - here + below);
            below = here;
            if (i < n) {  // the anchor left + i width and the slope move with the ends
                double slope = ((double)height[i + 1] - height[i]) / width, move = slope * s[i + 1].x, turn = slope * here;
                dl += -move * (1 - (double)i / n) + turn / n;
                dr += -move * ((double)i / n) - turn / n;
            }
        }
        out[0] = (T)(own < 1 ? dl + (1 - own) * dr : dl), out[1] = (T)(own > 0 ? own * dr : 0);
        // the left tail's distances were measured from one piece before
        out[n + 3] = (T)(s[0].y - table.width * s[0].x), out[n + 4] = (T)s[n + 1].y;
    }
};

template <class T>
static void pwlu(Lookup<T> task, const Curves<T>& curves, T* gradients) {
    const int64_t units = curves.units, P = curves.segments + 2;
    Scratch scratch(units * (sizeof(Table<T>) + 2 * P * sizeof(T)), false);
    auto* tables = scratch.as<Table<T>>();
    curves.tabulate(tables, (T*)(tables + units));
    task.tables = tables;
    if (!gradients) return task.forward();
    Scratch cells(units * P * sizeof(Cell));
    Cell* sums = cells.as<Cell>();
    task.backward(sums);
    for (int64_t u = 0; u < units; u++) {
        const int64_t at = u * curves.each();
        curves.gradient(tables[u], curves.all + at, sums + u * P, gradients + at);
    }
}

#define PWLU(suffix, T)                                                                                            \
    extern "C" void pwlu_##suffix##_forward(int64_t outer, int64_t units, int64_t inner, int64_t threads, const T* x,      \
                                            T* y, const T* curves, int64_t segments, double narrowest) {           \
        pwlu<T>({{outer, units, inner}, threads, nullptr, x, x, y}, {units, segments, (T)narrowest, curves}, nullptr);     \
    }                                                                                                              \
    extern "C" void pwlu_##suffix##_backward(int64_t outer, int64_t units, int64_t inner, int64_t threads, const T* x,     \
                                             T* dx, const T* curves, int64_t segments, double narrowest,           \
                                             const T* g, T* dcurves) {                                             \
        pwlu<T>({{outer, units, inner}, threads, nullptr, x, g, dx}, {units, segments, (T)narrowest, curves}, dcurves);    \
    } \
    SIGNATURE(pwlu_##suffix##_forward) \
    SIGNATURE(pwlu_##suffix##_backward)
PWLU(f32, float)
PWLU(f64, double)
