// Units that weigh a sample by its own statistics: sums over the positions of each channel, and element-wise forms whose
// coefficients differ by sample and channel. The small network between the two is torch's.
//
// A pass is a struct with
//     coefficients, sums  how many numbers it takes and gives for each sample and channel; where their number varies
//                         (``many``), the most, and all that are given count
//     from, to_map        whether it reads a map over positions, and whether it gives one, summed over channels
//     reads, graded, writes  whether it reads x, reads the gradient, and writes an output
//     step<T>(x, g, c, s, m, a, K)  returns the output, adds to the sums s and to the map a
// and all else, memory layouts, threads and exact sums, is done here for all of them alike.
#include "abi.h"
#include "parallel.h"

namespace {

constexpr int64_t BLOCK = 64;  // vectors added up in the input's own precision before their sum goes to a double
constexpr int64_t CACHE = 8192;  // bytes of an input that are worked on together
constexpr int MOST = 16;       // coefficients of a pass

// numbers by sample and channel; a step of 0 shares them
template <class T>
struct Operand {
    T* at;
    int64_t sample, channel;
};

template <class T>
struct Call {
    int64_t variant, back;
    int64_t samples, channels, positions, rows, threads;  // rows: channels side by side, else planes
    const T *x, *g;
    T* out;
    const T* map;  // (samples, positions), as dmap
    T* dmap;
    const int64_t *given, *wanted;  // of each tensor: address, step of samples, step of channels, its numbers each
    int64_t givens, wanteds;
    double divisor;  // of the sums
};

template <class T>
int expand(const int64_t* tensors, int64_t count, Operand<T>* operands) {
    int filled = 0;
    for (int64_t i = 0; i < count; i++, tensors += 4)
        for (int64_t k = 0; k < tensors[3]; k++) operands[filled++] = {(T*)tensors[0] + k, tensors[1], tensors[2]};
    return filled;
}

template <class Pass, class T>
struct Sweep {
    using V = Vec<T>;
    static constexpr int W = WIDTH<T>, M1 = Pass::coefficients ? Pass::coefficients : 1, S1 = Pass::sums ? Pass::sums : 1;
    static constexpr int SIDE = Pass::many ? 1 : 4;  // vectors of a row that are worked on together
    const Call<T>& t;
    const int64_t C, P;
    const int count;  // of coefficients, where it varies
    Operand<T> given[MOST], wanted[MOST];
    explicit Sweep(const Call<T>& t) : t(t), C(t.channels), P(t.positions), count(expand<T>(t.given, t.givens, given)) {
        expand<T>(t.wanted, t.wanteds, wanted);
    }

    INLINE int coefficients(const Sweep& w) { return Pass::many ? w.count : Pass::coefficients; }
    INLINE int sums_of(const Sweep& w) { return Pass::many && Pass::sums ? w.count : Pass::sums; }

    // one vector of the input, at element i, and of the map, at p
    template <class Width>
    INLINE V visit(int64_t i, const V* c, V* s, V m, V& a, const Sweep& w, Width n) {
        V x = Pass::reads ? load(w.t.x + i, n) : V(0), g = Pass::graded ? load(w.t.g + i, n) : V(0);
        V y = Pass::template step<T>(x, g, c, s, m, a, coefficients(w));
        if constexpr (Pass::writes) store(w.t.out + i, y, n);
        return y;
    }

    // one channel along the positions first ... last - 1 of a sample
    void plane(int64_t n, int64_t ch, int64_t first, int64_t last, bool fresh, double* sums) const {
        const int M = coefficients(*this), S = sums_of(*this);
        V c[M1];
        for (int k = 0; k < M; k++) c[k] = V(given[k].at[n * given[k].sample + ch * given[k].channel]);
        const int64_t at = (n * C + ch) * P, on_map = n * P;
        for (int64_t begin = first; begin < last; begin += BLOCK * W) {
            const int64_t end = begin + BLOCK * W < last ? begin + BLOCK * W : last;
            V s[S1] = {};
            auto one = [&](int64_t p, int width) __attribute__((always_inline)) {
                V m = Pass::from_map ? load(t.map + on_map + p, width) : V(0), a = V(0);
                if constexpr (Pass::to_map)
                    if (!fresh) a = load(t.dmap + on_map + p, width);
                visit(at + p, c, s, m, a, *this, width);
                if constexpr (Pass::to_map) store(t.dmap + on_map + p, a, width);
            };
            int64_t p = begin;
            for (; p + W <= end; p += W) one(p, W);
            if (p < end) {
                // lanes beyond the end hold zeros, which a pass may turn into something else
                V before[S1];
                for (int k = 0; k < S; k++) before[k] = s[k];
                one(p, (int)(end - p));
                const auto inside = lane_numbers<T>() < (typename Lanes<T>::Int)(end - p);
                for (int k = 0; k < S; k++) s[k] = inside ? s[k] : before[k];
            }
            for (int k = 0; k < S; k++) sums[k * C + ch] += sum(s[k]);
        }
    }

    void planes(int64_t n, int64_t first, int64_t last, double* sums, double* wide) const {
        for (int64_t top = 0; top < C; top += BLOCK) {
            const int64_t bottom = top + BLOCK < C ? top + BLOCK : C;
            for (int64_t ch = top; ch < bottom; ch++) plane(n, ch, first, last, ch == top, sums);
            if constexpr (Pass::to_map) {
                if (C <= BLOCK) continue;
                T* map = t.dmap + n * P;
                for (int64_t p = first; p < last; p++) {
                    wide[p - first] = (top ? wide[p - first] : 0) + (double)map[p];
                    if (bottom == C) map[p] = (T)wide[p - first];
                }
            }
        }
    }

    // channels side by side; ``table`` has room for (M + S) * C numbers, the last S * C of them 0
    void rows(int64_t n, int64_t first, int64_t last, double* sums, T* table) const {
        const int M = coefficients(*this), S = sums_of(*this);
        T* own = table + M * C;
        // rows whose memory fits into the first cache
        const int64_t room = CACHE / (C * (int64_t)sizeof(T)), together = room < 4 ? 4 : room < BLOCK ? room : BLOCK;
        for (int k = 0; k < M; k++)
            for (int64_t ch = 0; ch < C; ch++)
                table[k * C + ch] = given[k].at[n * given[k].sample + ch * given[k].channel];
        for (int64_t begin = first; begin < last; begin += BLOCK) {
            const int64_t end = begin + BLOCK < last ? begin + BLOCK : last;
            for (int64_t top = begin; top < end; top += together) {
                const int count = (int)(top + together < end ? together : end - top);
                const int64_t at = (n * P + top) * C, on_map = n * P + top;
                V a[BLOCK];
                if constexpr (Pass::to_map)
                    for (int r = 0; r < count; r++) a[r] = V(0);
                auto some = [&](int64_t ch, auto vectors, int width) __attribute__((always_inline)) {
                    constexpr int U = decltype(vectors)::value;
                    V c[U][M1], s[U][S1];
                    for (int u = 0; u < U; u++) {
                        for (int k = 0; k < M; k++) c[u][k] = load(table + k * C + ch + u * W, width);
                        for (int k = 0; k < S; k++) s[u][k] = load(own + k * C + ch + u * W, width);
                    }
                    for (int r = 0; r < count; r++) {
                        V m = V(Pass::from_map ? t.map[on_map + r] : T(0));
                        for (int u = 0; u < U; u++)
                            visit(at + r * C + ch + u * W, c[u], s[u], m, a[Pass::to_map ? r : 0], *this, width);
                    }
                    for (int u = 0; u < U; u++)
                        for (int k = 0; k < S; k++) store(own + k * C + ch + u * W, s[u][k], width);
                };
                int64_t ch = 0;
                for (; ch + SIDE * W <= C; ch += SIDE * W) some(ch, Number<SIDE>(), W);
                for (; ch < C; ch += W) some(ch, Number<1>(), ch + W < C ? W : (int)(C - ch));
                if constexpr (Pass::to_map)
                    for (int r = 0; r < count; r++) t.dmap[on_map + r] = (T)sum(a[r]);
            }
            for (int64_t i = 0; i < S * C; i++) sums[i] += own[i], own[i] = 0;
        }
    }

    void run(bool statistic) const {
        const int M = coefficients(*this), S = sums_of(*this);
        // a statistic is the first pass forward and the last one backward; the second starts where the first ended, which
        // the cache still holds
        const bool turned = statistic == (t.back != 0);
        const int64_t size = t.samples * C * P;
        int64_t parts = count_parts(t.threads, t.samples * P, size);
        // samples are cut where they are too few to be shared out evenly
        int64_t slices = t.samples % parts ? (4 * parts + t.samples - 1) / t.samples : 1;
        const int64_t length = ((P + slices - 1) / slices + BLOCK - 1) / BLOCK * BLOCK;
        slices = (P + length - 1) / length;
        const int64_t pieces = t.samples * slices, each = S * C;
        parts = parts < pieces ? parts : pieces;
        const int64_t line = (M + S) * C * sizeof(T) + 64, wide = Pass::to_map && C > BLOCK && !t.rows ? length * 8 : 0;
        const int64_t own = (t.rows ? line : wide) / 64 * 64 + 64;
        Scratch scratch(pieces * each * sizeof(double) + 64 + parts * own);
        double* sums = scratch.as<double>();
        char* tables = (char*)sums + (pieces * each * sizeof(double) + 63) / 64 * 64;
        for_parts(parts, pieces, [&](int64_t part, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i++) {
                const int64_t piece = turned ? begin + end - 1 - i : i;
                const int64_t n = piece / slices, first = piece % slices * length;
                const int64_t last = first + length < P ? first + length : P;
                double* mine = sums + piece * each;
                if (t.rows)
                    rows(n, first, last, mine, (T*)(tables + part * own));
                else
                    planes(n, first, last, mine, (double*)(tables + part * own));
            }
        });
        for (int k = 0; k < S; k++) {
            const Operand<T>& to = wanted[k];
            for (int64_t n = 0; n < t.samples; n += to.sample ? 1 : t.samples)
                for (int64_t ch = 0; ch < C; ch++) {
                    double total = 0;
                    for (int64_t piece = n * slices, end = to.sample ? piece + slices : pieces; piece < end; piece++)
                        total += sums[piece * each + k * C + ch];
                    to.at[n * to.sample + ch * to.channel] = (T)(t.divisor == 1 ? total : total / t.divisor);
                }
        }
    }
};

#define PASS(name, m, s, read, grade, write, from, to)                                      \
    PASS_OF(name, false, m, s, read, grade, write, from, to)
#define PASS_OF(name, varies, m, s, read, grade, write, from, to)                            \
    struct name {                                                                       \
        static constexpr bool many = varies;                                            \
        static constexpr int coefficients = m, sums = s;                                \
        static constexpr bool reads = read, graded = grade, writes = write, from_map = from, to_map = to;
#define STEP                             \
    template <class T, class V = Vec<T>> \
    INLINE V step(V x, V g, const V* c, V* s, V m, V& a, int n)

// ---- statistics: sums of f(x), and f's gradient

enum { SUM, SUM_ABS, SUM_SQUARE, SUM_RELU, SUM_RELU_SQUARE, SUM_AND_MAP };

template <int kind>
PASS(Statistic, kind == SUM_AND_MAP, 1, true, false, false, false, kind == SUM_AND_MAP)
STEP {
    V r = kind == SUM_RELU || kind == SUM_RELU_SQUARE ? relu(x) : x;
    if constexpr (kind == SUM_SQUARE || kind == SUM_RELU_SQUARE)
        s[0] = fma(r, r, s[0]);
    else
        s[0] += kind == SUM_ABS ? abs(x) : r;
    if constexpr (kind == SUM_AND_MAP) a = fma(c[0], x, a);
    return x;
}
};

// dx + d f'(x), with d the sum's gradient
template <int kind>
PASS(StatisticBack, kind == SUM_AND_MAP ? 2 : 1, kind == SUM_AND_MAP, kind != SUM, true, true, kind == SUM_AND_MAP, false)
STEP {
    if constexpr (kind == SUM) return g + c[0];
    if constexpr (kind == SUM_ABS) return g + (x > V(0) ? c[0] : x < V(0) ? -c[0] : c[0] * V(0));
    if constexpr (kind == SUM_SQUARE) return fma(c[0] + c[0], x, g);
    if constexpr (kind == SUM_RELU) return x <= V(0) ? g : g + c[0];
    if constexpr (kind == SUM_RELU_SQUARE) return x <= V(0) ? g : fma(c[0] + c[0], x, g);
    if constexpr (kind == SUM_AND_MAP) {
        s[0] = fma(m, x, s[0]);
        return g + fma(m, c[1], c[0]);
    }
}
};

// ---- the maximum of K lines; coefficients are K slopes, then K intercepts

enum { ANY, TWO };  // how many lines

// NaN in either stays, as in torch
template <class V>
INLINE V maximum(V a, V b) {
    V m = b > a ? b : a;
    return b != b ? b : m;
}

// any number of lines, or 2
template <int kind, bool mapped>
PASS_OF(Lines, kind == ANY, kind == ANY ? MOST : 4, 0, true, false, true, mapped, false)
STEP {
    const int K = kind == ANY ? n / 2 : 2;
    V y = fma(c[0], x, c[K]);
    for (int k = 1; k < K; k++) y = maximum(y, fma(c[k], x, c[K + k]));
    return mapped ? y * m : y;
}
};

template <int kind, bool mapped>
PASS_OF(LinesBack, kind == ANY, kind == ANY ? MOST : 4, coefficients, true, true, true, mapped, mapped)
STEP {
    const int K = kind == ANY ? n / 2 : 2;
    V line[coefficients / 2], most[coefficients / 2];
    most[0] = line[0] = fma(c[0], x, c[K]);
    for (int k = 1; k < K; k++) most[k] = maximum(most[k - 1], line[k] = fma(c[k], x, c[K + k]));
    if constexpr (mapped) {
        a = fma(g, most[K - 1], a);
        g *= m;
    }
    // a tie halves the gradient, as in torch.maximum
    V dx = V(0);
    for (int k = K - 1; k >= 0; k--) {
        V mine = g;
        if (k > 0) {
            V half = line[k] == most[k - 1] ? g * V(T(0.5)) : g;
            mine = most[k - 1] > line[k] ? V(0) : half;
            g = most[k - 1] < line[k] ? V(0) : half;
        }
        s[k] = fma(mine, x, s[k]);
        s[K + k] += mine;
        dx = fma(mine, c[k], dx);
    }
    return dx;
}
};

// ---- x times a gate, with relu nowhere, before or after

enum { BARE, BEFORE, AFTER };

template <int place>
PASS(Scaled, 1, 0, true, false, true, false, false)
STEP {
    V y = (place == BEFORE ? relu(x) : x) * c[0];
    return place == AFTER ? relu(y) : y;
}
};

template <int place>
PASS(ScaledBack, 1, 1, true, true, true, false, false)
STEP {
    if constexpr (place == BEFORE) g = x <= V(0) ? V(0) : g;
    if constexpr (place == AFTER) g = x * c[0] <= V(0) ? V(0) : g;
    s[0] = fma(g, place == BEFORE ? relu(x) : x, s[0]);
    V dx = g * c[0];
    return place == BEFORE ? (x <= V(0) ? V(0) : dx) : dx;  // whatever the gate, NaN too
}
};

// ---- ACON with beta by sample: y = z sigmoid(beta z) + p2 x, z = (p1 - p2) x; coefficients are beta, p1, p2

PASS(Acon, 3, 0, true, false, true, false, false)
STEP {
    V z = (c[1] - c[2]) * x;
    return fma(z, sigmoid<T>(c[0] * z), c[2] * x);
}
};

PASS(AconBack, 3, 3, true, true, true, false, false)
STEP {
    V d = c[1] - c[2], z = d * x, on = sigmoid<T>(c[0] * z), y = on * z, slope = fma(-y, on, y);
    V dz = g * fma(c[0], slope, on);
    s[0] = fma(g * z, slope, s[0]);
    s[1] = fma(dz, x, s[1]);
    s[2] += fma(g, x, -dz * x);
    return fma(dz, d, g * c[2]);
}
};

// ---- what Python calls: one function for each family of passes, whose variant says which

struct Statistics {
    static constexpr bool statistic = true;
    static constexpr int first = SUM, last = SUM_AND_MAP;
    template <int k>
    using Forward = Statistic<k>;
    template <int k>
    using Backward = StatisticBack<k>;
};
template <bool mapped>
struct Maxima {
    static constexpr bool statistic = false;
    static constexpr int first = ANY, last = TWO;
    template <int k>
    using Forward = Lines<k, mapped>;
    template <int k>
    using Backward = LinesBack<k, mapped>;
};
struct Scales {
    static constexpr bool statistic = false;
    static constexpr int first = BARE, last = AFTER;
    template <int k>
    using Forward = Scaled<k>;
    template <int k>
    using Backward = ScaledBack<k>;
};
struct Acons {
    static constexpr bool statistic = false;
    static constexpr int first = 0, last = 0;
    template <int>
    using Forward = Acon;
    template <int>
    using Backward = AconBack;
};

template <class Family, int k, class T>
void choose(const Call<T>& t) {
    if (t.variant == k) {
        if (t.back)
            Sweep<typename Family::template Backward<k>, T>(t).run(Family::statistic);
        else
            Sweep<typename Family::template Forward<k>, T>(t).run(Family::statistic);
    } else if constexpr (k < Family::last)
        choose<Family, k + 1>(t);
}

}  // namespace

#define EXPORT_AS(symbol, Family, T)                                                                      \
    extern "C" void symbol(int64_t variant, int64_t back, int64_t samples, int64_t channels,             \
                           int64_t positions, int64_t rows, int64_t threads, const T* x, const T* g,     \
                           T* out, const T* map, T* dmap, const int64_t* given, int64_t givens,          \
                           const int64_t* wanted, int64_t wanteds, double divisor) {                     \
        choose<Family, Family::first>(Call<T>{variant, back, samples, channels, positions, rows, threads, \
                                              x, g, out, map, dmap, given, wanted, givens, wanteds, divisor}); \
    }                                                                                                     \
    SIGNATURE(symbol)
#define EXPORT(name, Family)                 \
    EXPORT_AS(gate_##name##_f32, Family, float) \
    EXPORT_AS(gate_##name##_f64, Family, double)

EXPORT(statistic, Statistics)
EXPORT(lines, Maxima<false>)
EXPORT(mapped_lines, Maxima<true>)
EXPORT(scale, Scales)
EXPORT(acon, Acons)
