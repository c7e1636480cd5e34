#include "table.h"

// ---- one zone with learnt ends, heights and tails: PWLU

template <class T>
struct Shape {  // of all units, as the parameters lie
    int64_t units, segments;
    T narrowest;  // the ends are at least narrowest * max(1, |left|) apart
    const T *left, *right, *heights, *slope_left, *slope_right;

    T end(int64_t u, bool& own) const {
        T reach = left[u] < 0 ? -left[u] : left[u];
        T least = left[u] + narrowest * (reach > 1 ? reach : T(1));
        own = !(right[u] < least);
        return own ? right[u] : least;
    }
    // ``pairs`` has room for units * (segments + 2) of them
    void tabulate(Table<T>* tables, T* pairs) const {
        for (int64_t u = 0; u < units; u++) {
            auto& t = tables[u];
            bool own;
            T* pair = pairs + 2 * u * (segments + 2);
            const T* height = heights + u * (segments + 1);
            t.zones = 1, t.pieces = segments + 2, t.first[0] = 1, t.count[0] = segments;
            t.ends[0] = left[u], t.ends[1] = end(u, own);
            t.width[0] = (t.ends[1] - left[u]) / T(segments), t.inverse[0] = 1 / t.width[0];
            t.pairs = pair;
            pair[0] = height[0], pair[1] = slope_left[u];
            for (int64_t i = 0; i < segments; i++) {
                pair[2 * i + 2] = height[i];
                pair[2 * i + 3] = (height[i + 1] - height[i]) / t.width[0];
            }
            pair[2 * segments + 2] = height[segments], pair[2 * segments + 3] = slope_right[u];
        }
    }
};

template <class T>
static void pwlu(Lookup<T> task, const Shape<T>& shape, T* const* gradients) {
    const int64_t units = shape.units, n = shape.segments, P = n + 2;
    Scratch scratch(units * (sizeof(Table<T>) + 2 * P * sizeof(T)) + 64);
    Scratch cells(gradients ? units * P * sizeof(Cell) : 0);
    auto* tables = scratch.as<Table<T>>();
    shape.tabulate(tables, (T*)(tables + units));
    task.tables = tables;
    if (!gradients) return task.forward();
    Cell* sums = cells.as<Cell>();
    task.backward(sums);
    T *left = gradients[0], *right = gradients[1], *heights = gradients[2];
    for (int64_t u = 0; u < units; u++) {
        const Cell* s = sums + u * P;
        const T *pair = tables[u].pairs, *height = shape.heights + u * (n + 1);
        const double width = ((double)tables[u].ends[1] - tables[u].ends[0]) / n;
        double dl = -pair[1] * s[0].x, dr = -pair[2 * n + 3] * s[n + 1].x, below = 0;
        for (int64_t i = 0; i <= n; i++) {
            double here = i < n ? s[i + 1].y / width : 0;  // of the slope on the right of knot i
            double value = i < n ? s[i + 1].x : s[n + 1].x;
            if (i == 0) value += s[0].x;
            heights[u * (n + 1) + i] = (T)(value - here + below);
            below = here;
            if (i < n) {  // the anchor left + i width and the slope move with the ends
                double slope = ((double)height[i + 1] - height[i]) / width, move = slope * s[i + 1].x, turn = slope * here;
                dl += -move * (1 - (double)i / n) + turn / n;
                dr += -move * ((double)i / n) - turn / n;
            }
        }
        bool own;
        shape.end(u, own);
        left[u] = (T)(own ? dl : dl + dr), right[u] = (T)(own ? dr : 0);
        gradients[3][u] = (T)s[0].y, gradients[4][u] = (T)s[n + 1].y;
    }
}

#define PWLU(suffix, T)                                                                                           \
    extern "C" void pwlu_##suffix##_forward(int64_t outer, int64_t units, int64_t inner, int64_t threads, const T* x,     \
                                            T* y, const T* const* p, int64_t segments, double narrowest) {        \
        pwlu<T>({{outer, units, inner}, threads, nullptr, x, x, y},                                               \
                {units, segments, (T)narrowest, p[0], p[1], p[2], p[3], p[4]}, nullptr);                          \
    }                                                                                                             \
    extern "C" void pwlu_##suffix##_backward(int64_t outer, int64_t units, int64_t inner, int64_t threads, const T* x,    \
                                             T* dx, const T* const* p, int64_t segments, double narrowest,        \
                                             const T* g, T* const* dp) {                                          \
        pwlu<T>({{outer, units, inner}, threads, nullptr, x, g, dx},                                              \
                {units, segments, (T)narrowest, p[0], p[1], p[2], p[3], p[4]}, dp);                               \
    }
PWLU(f32, float)
PWLU(f64, double)
