// Units y = f(x; p) of one input and a few parameters per channel or site.
//
// A unit is a struct with
//     params                       how many p there are; at most MAX_PARAMS where their number varies (``many``)
//     forward<T>(x, p, n)          f on all lanes
//     backward<T>(x, g, p, dp, n)  returns g df/dx and adds g df/dp to dp
//     finish(dp, p, n)             where the sums over all elements are not yet the gradients
// and all else, memory layouts, threads and exact sums, is done here for all of them alike.
#pragma once

#include "abi.h"
#include "parallel.h"

constexpr int MAX_PARAMS = 40;
// vectors that are added up in the input's own precision before their sum goes to a double: at most 64 roundings
constexpr int64_t BLOCK = 64;

struct Unit {
    static constexpr int usual = 0;  // where their number varies, the one that has code of its own
    static void finish(double*, const double*, int) {}
};

template <class T>
struct Pointwise {
    Layout at;
    int64_t threads;
    const T *x, *g;
    T* out;  // y or dx
    const T* const* p;
    T* const* dp;
    int64_t n;  // parameters
};

template <class Unit, class T, bool back>
struct Runner {
    using V = Vec<T>;
    static constexpr int W = WIDTH<T>, MOST = Unit::many ? MAX_PARAMS : (Unit::params > 0 ? Unit::params : 1);
    const Pointwise<T>& t;
    int n;
    explicit Runner(const Pointwise<T>& t) : t(t), n(Unit::many ? (int)t.n : Unit::params) {}

    template <class Count>
    INLINE V apply(V x, V g, const V* p, V* dp, Count n) {
        if constexpr (back)
            return Unit::template backward<T>(x, g, p, dp, n);
        else
            return Unit::template forward<T>(x, p, n);
    }

    // one unit along a run of memory
    template <class Count>
    void run(const T* x, const T* g, T* out, int64_t size, const V* p, double* sums, Count n) const {
        for (int64_t first = 0; first < size;) {
            V dp[MOST] = {};
            int64_t last = first + BLOCK * W < size ? first + BLOCK * W : size, i = first;
            for (; i + W <= last; i += W) store(out + i, apply(load(x + i), back ? load(g + i) : V(0), p, dp, n));
            if (i < last) {
                int rest = (int)(last - i);
                store(out + i, apply(load(x + i, rest), back ? load(g + i, rest) : V(0), p, dp, n), rest);
            }
            if constexpr (back)
                for (int k = 0; k < n; k++) sums[k] += sum(dp[k]);
            first = last;
        }
    }

    // units side by side: rows of ``units`` elements, four at a time, as each row is a stream of its own for the
    // processor's prefetcher; ``own`` has room for n * units sums in the input's precision
    void rows(int64_t first, int64_t last, T* own, double* sums) const {
        const int64_t C = t.at.units, count = n * C;
        for (int64_t top = first; top < last; top += BLOCK) {
            int64_t bottom = top + BLOCK < last ? top + BLOCK : last;
            for (int64_t r = top; r < bottom; r += 4) {
                int64_t end = r + 4 < bottom ? r + 4 : bottom;
                for (int64_t c = 0; c < C; c += W) {
                    int width = C - c < W ? (int)(C - c) : W;
                    V p[MOST], dp[MOST];
                    for (int k = 0; k < n; k++) p[k] = load(t.p[k] + c, width);
                    if constexpr (back)
                        for (int k = 0; k < n; k++) dp[k] = load(own + k * C + c, width);
                    for (int64_t i = r * C + c; i < end * C; i += C) {
                        V x = load(t.x + i, width), g = back ? load(t.g + i, width) : V(0);
                        store(t.out + i, apply(x, g, p, dp, n), width);
                    }
                    if constexpr (back)
                        for (int k = 0; k < n; k++) store(own + k * C + c, dp[k], width);
                }
            }
            if constexpr (back)
                for (int64_t i = 0; i < count; i++) sums[i] += own[i], own[i] = 0;
        }
    }

    void operator()() const {
        const bool by_rows = t.at.inner == 1 && t.at.units > 1;
        // one unit for all: runs of any length will do
        const int64_t size = t.at.size(), C = t.at.units, inner = C > 1 ? t.at.inner : BLOCK * W;
        const int64_t pieces = by_rows ? t.at.outer : (size + inner - 1) / inner;
        const int64_t parts = count_parts(t.threads, pieces, size);
        Scratch scratch(back ? 2 * parts * n * C * sizeof(double) : 0);
        double *all = scratch.as<double>(), *blocks = all + parts * n * C;
        for_parts(parts, pieces, [&](int64_t part, int64_t first, int64_t last) {
            double* sums = all + part * n * C;
            if (by_rows) return rows(first, last, (T*)(blocks + part * n * C), sums);
            for (int64_t r = first; r < last; r++) {
                int64_t c = r % C, i = r * inner, length = size - i < inner ? size - i : inner;
                V p[MOST];
                double own[MOST] = {};
                for (int k = 0; k < n; k++) p[k] = V(t.p[k][c]);
                if (Unit::usual && n == Unit::usual)
                    run(t.x + i, t.g + i, t.out + i, length, p, own, Number<Unit::usual>());
                else
                    run(t.x + i, t.g + i, t.out + i, length, p, own, n);
                if constexpr (back)
                    for (int k = 0; k < n; k++) sums[k * C + c] += own[k];
            }
        });
        if constexpr (back)
            for (int64_t c = 0; c < C; c++) {
                double p[MOST], dp[MOST] = {};
                for (int k = 0; k < n; k++) {
                    p[k] = t.p[k][c];
                    for (int64_t part = 0; part < parts; part++) dp[k] += all[(part * n + k) * C + c];
                }
                Unit::finish(dp, p, n);
                for (int k = 0; k < n; k++) t.dp[k][c] = (T)dp[k];
            }
    }
};

// ---- how a unit is written

#define UNIT(name, count)                 \
    struct name : Unit {                  \
        static constexpr int params = count; \
        static constexpr bool many = false;
#define FORWARD  \
    template <class T, class V = Vec<T>> \
    INLINE V forward(V x, const V* p, int n)
#define BACKWARD \
    template <class T, class V = Vec<T>> \
    INLINE V backward(V x, V g, const V* p, V* dp, int n)

#define EXPORT_AS(symbol, T, ...)                                                                              \
    extern "C" void symbol##_forward(int64_t outer, int64_t units, int64_t inner, int64_t threads, const T* x, \
                                     T* y, const T* const* p, int64_t n) {                                     \
        Runner<__VA_ARGS__, T, false>(                                                                         \
            Pointwise<T>{{outer, units, inner}, threads, x, x, y, p, nullptr, n})();                           \
    }                                                                                                          \
    extern "C" void symbol##_backward(int64_t outer, int64_t units, int64_t inner, int64_t threads, const T* x, \
                                      T* dx, const T* const* p, int64_t n, const T* g, T* const* dp) {         \
        Runner<__VA_ARGS__, T, true>(Pointwise<T>{{outer, units, inner}, threads, x, g, dx, p, dp, n})();      \
    }                                                                                                          \
    SIGNATURE(symbol##_forward)                                                                                \
    SIGNATURE(symbol##_backward)
// the rest is the struct, which may be a template with arguments
#define EXPORT(symbol, ...)                     \
    EXPORT_AS(symbol##_f32, float, __VA_ARGS__) \
    EXPORT_AS(symbol##_f64, double, __VA_ARGS__)
