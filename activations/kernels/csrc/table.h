// Piecewise-linear functions by table: y = value[p] + slope[p] (x - anchor[p]) on the piece p of x.
//
// The line is cut into equally wide pieces, anchored at their left ends, between two straight tails: the left one is
// anchored one piece before its end, the right one at its end. The piece of an element is computed, not searched, and
// computed again in backward instead of stored. The parameters' gradients follow from the sums of g and of
// g (x - anchor) over the elements of each piece, a histogram with two doubles a cell.
#pragma once

#include "parallel.h"

template <class T>
struct Table {
    T origin, width;        // where piece ``before`` begins, and how wide all are
    int64_t before, after;  // pieces left of the origin and right of it, a tail each
    T end, at_end;          // a knot that is compared with x itself, and the piece on its right, counted from the origin
    const T* pairs;         // value and slope of every piece, one after the other
    T inverse, least, most;

    Table(T left, T wide, int64_t before, int64_t after, T end, int64_t at_end, const T* pairs)
        : origin(left), width(wide), before(before), after(after), end(end), at_end((T)at_end), pairs(pairs) {
        const T far = (before + after) * width;
        // a parameter that is no number, or out of all bounds, must not lead out of the table: all is NaN then
        if (!(width > 0 && far - far == 0 && 1 / width < T(1) / 0 && origin - origin == 0)) origin = T(0) / 0, width = 1;
        // a distance in a tail acts as one in the tail's first piece
        inverse = 1 / width, least = (T(0.5) - before) * width, most = (after - T(0.5)) * width;
    }
    int64_t pieces() const { return before + after; }
};

// Whether a division is faster than what replaces it: on AVX2, where nothing else needs the divider.
#if defined(__AVX2__) && !defined(__AVX512F__)
template <class T>
constexpr bool DIVIDES = sizeof(T) == 4;
#else
template <class T>
constexpr bool DIVIDES = false;
#endif

// what a vector of elements needs to know of its table
template <class T>
struct Place {
    using V = Vec<T>;
    V origin, width, inverse, least, most, end, at_end, before_end;

    INLINE Place of(const Table<T>& t) {
        return {V(t.origin), V(t.width), V(t.inverse), V(t.least),
                V(t.most),   V(t.end),   V(t.at_end),  V(t.at_end - 1)};
    }
    // The piece of each x, counted from the origin, and how far it is from the piece's anchor. ``closed``: the tail on the
    // right begins at the end.
    template <bool closed>
    INLINE IVec<T> find(const Place& p, V x, V& beyond) {
        V distance = x - p.origin, held = distance > p.least ? distance : p.least;  // NaN as well
        if constexpr (!closed) held = held < p.most ? held : p.most;
        V i = floor(quotient(p, held));
        // the width is rounded, and so is where the end would be by it
        V left = i < p.before_end ? i : p.before_end, right = closed ? p.at_end : i > p.at_end ? i : p.at_end;
        i = x >= p.end ? right : left;
        beyond = fma(-p.width, i, distance);
        return __builtin_convertvector(i, IVec<T>);
    }
    // ``held`` in widths, rounded as by a division, so that points on knots belong to the piece to the right
    INLINE V quotient(const Place& p, V held) {
        if constexpr (DIVIDES<T>) return held / p.width;
        V q = held * p.inverse;  // Markstein's theorem
        return fma(fma(-q, p.width, held), p.inverse, q);
    }
};

// of the pairs of few pieces, held in registers
#ifdef __AVX512F__
constexpr int64_t SMALL = 32;
struct InRegisters {
    Vec<float> values[2], slopes[2];
    INLINE InRegisters of(const Table<float>& t) {
        Vec<float> pairs[4];
        for (int k = 0; k < 4; k++) {
            const int64_t rest = 2 * t.pieces() - 16 * k;
            pairs[k] = load(t.pairs + 16 * k, rest > 16 ? 16 : rest > 0 ? (int)rest : 0);
        }
        InRegisters found;
        for (int k = 0; k < 2; k++) {
            // places count around: lane l has the pair of place l, or of place l - 32
            const IVec<float> pair = (lane_numbers<float>() + (int32_t)(16 * k + t.before)) & 31, at = pair + pair;
            found.values[k] = number(pairs, at), found.slopes[k] = number(pairs, at + 1);
        }
        return found;
    }
    // lane by lane, of 64 numbers
    INLINE Vec<float> number(const Vec<float>* all, IVec<float> at) {
        Vec<float> low = _mm512_permutex2var_ps(all[0], (__m512i)at, all[1]);
        Vec<float> high = _mm512_permutex2var_ps(all[2], (__m512i)at, all[3]);
        return at < 32 ? low : high;
    }
    INLINE Vec<float> value(const InRegisters& t, IVec<float> at) {
        return _mm512_permutex2var_ps(t.values[0], (__m512i)at, t.values[1]);
    }
    INLINE Vec<float> slope(const InRegisters& t, IVec<float> at) {
        return _mm512_permutex2var_ps(t.slopes[0], (__m512i)at, t.slopes[1]);
    }
};
#elif defined(__AVX2__)
constexpr int64_t SMALL = 24;
struct InRegisters {
    alignas(32) float values[SMALL], slopes[SMALL];
    int32_t before;
    INLINE InRegisters of(const Table<float>& t) {
        InRegisters found;
        found.before = (int32_t)t.before;
        for (int64_t p = 0; p < SMALL; p++) {
            const bool inside = p < t.pieces();
            found.values[p] = inside ? t.pairs[2 * p] : 0, found.slopes[p] = inside ? t.pairs[2 * p + 1] : 0;
        }
        return found;
    }
    // lane by lane: the lowest three bits of a place choose in each third of the numbers
    INLINE Vec<float> third(const float* numbers, IVec<float> at) {
        Vec<float> found;
        found.lo = _mm256_permutevar8x32_ps(*(const __m256*)numbers, (__m256i)at.lo);
        found.hi = _mm256_permutevar8x32_ps(*(const __m256*)numbers, (__m256i)at.hi);
        return found;
    }
    INLINE Vec<float> number(const InRegisters& t, const float* all, IVec<float> at) {
        at += t.before;
        const Vec<float> low = at > 7 ? third(all + 8, at) : third(all, at);
        return at > 15 ? third(all + 16, at) : low;
    }
    INLINE Vec<float> value(const InRegisters& t, IVec<float> at) { return number(t, t.values, at); }
    INLINE Vec<float> slope(const InRegisters& t, IVec<float> at) { return number(t, t.slopes, at); }
};
#else
constexpr int64_t SMALL = 0;
#endif

typedef double Cell __attribute__((ext_vector_type(2)));  // sums of g and of g (x - anchor)
constexpr int64_t FEW_PIECES = 64;  // at most so many have eight cells each
constexpr int64_t SHORT = 64, GROUP = 256;  // runs that are joined, and the elements of them that are
constexpr int64_t LONG = 8192;           // elements of a run, where a single unit's are cut into runs
// Places in tables and cells are stored as vectors and read one by one, some vectors later, when they have arrived.
constexpr int64_t LATE = 4;

// Which sums a histogram keeps. A sum that many elements in a row are added to is slow, each waits for the one before.
// So in a table of few pieces every piece has eight cells, for neighbours. In a larger one the tails, which may be hit
// often, have a cell for each lane; or all that is not learnt has.
enum Kind { FEW, TAILS, LEARNT };

template <class T>
struct Histogram {
    using I = typename Lanes<T>::Int;
    Kind kind;
    I before, pieces;
    I first, last;  // the pieces with a single cell, counted from the origin

    int64_t size() const { return kind == FEW ? 8 * pieces : last - first + 2 * WIDTH<T>; }

    // in bytes, where the cell of each lane is, from the piece counted from the origin
    template <Kind kind>
    INLINE IVec<T> at(const Histogram& h, IVec<T> piece) {
        constexpr I bytes = sizeof(Cell);
        const auto lane = lane_numbers<T>();
        if constexpr (kind == FEW) return piece * (8 * bytes) + ((lane & 7) + 8 * h.before) * bytes;
        const I inside = h.last - h.first;
        IVec<T> cell = piece - h.first;
        auto within = __builtin_convertvector(cell, Unsigned<T>) < (typename Lanes<T>::UInt)inside;
        cell = within ? cell : lane + inside;
        if constexpr (kind == TAILS) cell = piece >= h.last ? lane + (inside + WIDTH<T>) : cell;
        return cell * bytes;
    }
    // how many sums there are, and add the cells up to them and empty the cells
    int64_t sums() const { return kind == LEARNT ? last - first : pieces; }
    void collect(Cell* cells, Cell* sums) const {
        const int64_t inside = last - first, start = kind == LEARNT ? 0 : 1;
        for (int64_t i = 0; i < inside && kind != FEW; i++) sums[start + i] += cells[i];
        for (int64_t i = 0; i < 8 * pieces && kind == FEW; i++) sums[i / 8] += cells[i];
        for (int64_t l = 0; l < WIDTH<T> && kind == TAILS; l++) {
            sums[0] += cells[inside + l], sums[pieces - 1] += cells[inside + WIDTH<T> + l];
        }
        memset((void*)cells, 0, size() * sizeof(Cell));
    }
};

// work(i, at[i]) for all i; two places are read at a time, as reading them one by one would be a third of all reads
template <class Work>
INLINE void each(const int32_t* at, int64_t length, Work work) {
    int64_t i = 0;
    for (; i + 1 < length; i += 2) {
        uint64_t both;
        memcpy(&both, at + i, 8);
        work(i, (int32_t)both);
        work(i + 1, (int64_t)both >> 32);
    }
    if (i < length) work(i, at[i]);
}
template <class Work>
INLINE void each(const int64_t* at, int64_t length, Work work) {
    for (int64_t i = 0; i < length; i++) work(i, at[i]);
}

// one by one, which is faster than the gather instructions of the processors it was measured on
template <class T>
INLINE void read_pairs(const T* origin, const typename Lanes<T>::Int* at, Vec<T>& value, Vec<T>& slope) {
    if constexpr (WIDTH<T> == 16) {
        auto pair = [&](int l) __attribute__((always_inline)) {
            double both;
            memcpy(&both, origin + 2 * (int64_t)at[l], 8);
            return both;
        };
#ifdef __AVX512F__
        const Vec<double> low = {pair(0), pair(1), pair(2), pair(3), pair(4), pair(5), pair(6), pair(7)};
        const Vec<double> high = {pair(8), pair(9), pair(10), pair(11), pair(12), pair(13), pair(14), pair(15)};
        const Vec<float> a = *(const Vec<float>*)&low, b = *(const Vec<float>*)&high;
        value = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        slope = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#else
        // in the order in which a shuffle within every 16 bytes sorts them
        const Vec<double> low = {pair(0), pair(1), pair(4), pair(5), pair(8), pair(9), pair(12), pair(13)};
        const Vec<double> high = {pair(2), pair(3), pair(6), pair(7), pair(10), pair(11), pair(14), pair(15)};
        const Vec<float> a = *(const Vec<float>*)&low, b = *(const Vec<float>*)&high;
        value = __builtin_shufflevector(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30);
        slope = __builtin_shufflevector(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
#endif
    } else {
        for (int l = 0; l < WIDTH<T>; l++) value[l] = origin[2 * at[l]], slope[l] = origin[2 * at[l] + 1];
    }
}

template <class T>
INLINE Vec<T> read_slopes(const T* origin, const typename Lanes<T>::Int* at) {
    auto slope = [&](int l) __attribute__((always_inline)) { return origin[2 * (int64_t)at[l] + 1]; };
    if constexpr (WIDTH<T> == 16)
        return {slope(0), slope(1), slope(2),  slope(3),  slope(4),  slope(5),  slope(6),  slope(7),
                slope(8), slope(9), slope(10), slope(11), slope(12), slope(13), slope(14), slope(15)};
    else
        return {slope(0), slope(1), slope(2), slope(3), slope(4), slope(5), slope(6), slope(7)};
}

// a0, b0, a1, b1 ...
template <class T>
INLINE void store_pairs(T* to, Vec<T> a, Vec<T> b) {
    typedef T Both __attribute__((ext_vector_type(2 * WIDTH<T>)));
    if constexpr (WIDTH<T> == 16)
        *(Both*)to = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26,
                                             11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    else
        *(Both*)to = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
}
// adds g and g (x - anchor) to the cells of a vector; a product in float would show in sums that nearly cancel
template <class T>
INLINE void count(const typename Lanes<T>::Int* cell, const T* pairs, Cell* cells) {
    typedef T Pair __attribute__((ext_vector_type(2)));
    each(cell, WIDTH<T>, [&](int64_t i, int64_t offset) {
        const Cell t = __builtin_convertvector(*(const Pair*)(pairs + 2 * i), Cell);
        Cell& sums = *(Cell*)((char*)cells + offset);
        sums = fma(t, Cell{1.0, t.x}, sums);
    });
}

// first(i, n) for every vector of a run, n being the lanes that count, and second(i, n) ``delay`` elements later. Where all
// lanes count the compiler knows it: a copy of some lanes would make it save its registers.
template <int W, class First, class Second>
INLINE void staggered(int64_t size, int64_t delay, First first, Second second) {
    const Number<W> all;
    int64_t i = 0;
    for (; i + W <= size; i += W) {
        first(i, all);
        if (i >= delay) second(i - delay, all);
    }
    for (; i < size + delay; i += W) {
        const int64_t start = i - delay;
        if (i < size) first(i, (int)(size - i));
        if (start >= 0) second(start, size - start < W ? (int)(size - start) : W);
    }
}

template <class T, bool small>
INLINE void table_forward(const Table<T>& t, const T* x, T* y, int64_t size) {
    using V = Vec<T>;
    constexpr int W = WIDTH<T>;
    const auto place = Place<T>::of(t);
#ifdef __AVX512F__
    if constexpr (small) {
        const auto table = InRegisters::of(t);
        auto all = [&](int64_t i, auto n) __attribute__((always_inline)) {
            V beyond;
            auto piece = Place<T>::template find<small>(place, load(x + i, n), beyond);
            store(y + i, fma(InRegisters::slope(table, piece), beyond, InRegisters::value(table, piece)), n);
        };
        return staggered<W>(size, 0, all, [](int64_t, int) {});
    }
#endif
    constexpr int64_t DELAY = LATE * W;
    alignas(64) typename Lanes<T>::Int pieces[2 * DELAY];  // counted from the origin
    alignas(64) T distances[2 * DELAY];
    auto place_all = [&](int64_t i, auto n) __attribute__((always_inline)) {
        const int64_t at = i & (2 * DELAY - 1);
        V beyond;
        *(IVec<T>*)(pieces + at) = Place<T>::template find<small>(place, load(x + i, n), beyond);
        store(distances + at, beyond);
    };
    auto read_all = [&](int64_t i, auto n) __attribute__((always_inline)) {
        const int64_t at = i & (2 * DELAY - 1);
        V value, slope;
        read_pairs<T>(t.pairs + 2 * t.before, pieces + at, value, slope);
        store(y + i, fma(slope, load(distances + at), value), n);
    };
    staggered<W>(size, DELAY, place_all, read_all);
}

template <class T, bool small, Kind kind>
INLINE void table_backward(const Table<T>& t, const Histogram<T>& histogram, const T* x, const T* g, T* dx, int64_t size,
                           Cell* cells) {
    using V = Vec<T>;
    constexpr int W = WIDTH<T>;
    const auto place = Place<T>::of(t);
#ifdef __AVX2__  // AVX-512 as well
    const auto table = small ? InRegisters::of(*(const Table<float>*)&t) : InRegisters();
#endif
    constexpr int64_t DELAY = LATE * W, AHEAD = 512;
    alignas(64) typename Lanes<T>::Int pieces[2 * DELAY], hit[2 * DELAY];
    alignas(64) T pairs[4 * DELAY];  // g and x - anchor
    auto place_all = [&](int64_t i, auto n) __attribute__((always_inline)) {
        const int64_t at = i & (2 * DELAY - 1);
        __builtin_prefetch(x + i + AHEAD);
        __builtin_prefetch(g + i + AHEAD);
        __builtin_prefetch(dx + i + AHEAD, 1);
        V beyond, down = load(g + i, n);
        auto piece = Place<T>::template find<small>(place, load(x + i, n), beyond);
        store_pairs(pairs + 2 * at, down, beyond);
        *(IVec<T>*)(hit + at) = Histogram<T>::template at<kind>(histogram, piece);
#ifdef __AVX2__
        if constexpr (small) store(dx + i, down * InRegisters::slope(table, piece), n);
#endif
        if constexpr (!small) *(IVec<T>*)(pieces + at) = piece;
    };
    auto count_all = [&](int64_t i, auto n) __attribute__((always_inline)) {
        const int64_t at = i & (2 * DELAY - 1);
        if constexpr (!small)
            store(dx + i, load(g + i, n) * read_slopes<T>(t.pairs + 2 * t.before, pieces + at), n);
        count(hit + at, pairs + 2 * at, cells);
    };
    staggered<W>(size, DELAY, place_all, count_all);
}

template <class T>
constexpr int64_t SMALL_OF = sizeof(T) == 4 ? SMALL : 0;
template <class T>
bool is_small(const Table<T>& t) {
    return t.pieces() <= SMALL_OF<T> && t.at_end == t.after - 1;
}

// One table for each unit, laid out as ``at`` says. ``sums``, in backward: (units, pieces) cells, empty.
template <class T>
struct Lookup {
    Layout at;
    int64_t threads;
    const Table<T>* tables;
    const T *x, *g;
    T* out;
    int64_t learnt = 0;  // of the pieces right of the origin those whose sums are wanted; 0: all pieces'

    int64_t pieces() const { return tables->pieces(); }
    Histogram<T> histogram() const {
        using I = typename Lanes<T>::Int;
        const I before = (I)tables->before, after = (I)tables->after;
        Kind kind = learnt ? LEARNT : (pieces() <= FEW_PIECES ? FEW : TAILS);
        return {kind, before, before + after, learnt ? 0 : 1 - before, learnt ? (I)learnt : after - 1};
    }
    // the elements of one unit lie in ``outer`` runs of ``inner``; a single unit's are cut into runs
    int64_t run_length() const { return at.units > 1 ? at.inner : LONG; }
    bool by_rows() const { return at.units > 1 && at.inner == 1; }
    // runs that are too short to prepare for each
    bool by_groups() const { return at.units > 1 && at.inner > 1 && at.inner < SHORT; }
    int64_t samples() const { return GROUP / at.inner; }

    static void forward_run(const Table<T>& t, const T* x, T* y, int64_t size) {
        if (is_small(t))
            table_forward<T, (SMALL_OF<T> > 0)>(t, x, y, size);
        else
            table_forward<T, false>(t, x, y, size);
    }
    static void backward_run(const Table<T>& t, const Histogram<T>& histogram, const T* x, const T* g, T* dx, int64_t size,
                             Cell* cells) {
        if (histogram.kind == LEARNT)
            table_backward<T, false, LEARNT>(t, histogram, x, g, dx, size, cells);
        else if (is_small(t))
            table_backward<T, (SMALL_OF<T> > 0), FEW>(t, histogram, x, g, dx, size, cells);
        else if (histogram.kind == FEW)
            table_backward<T, false, FEW>(t, histogram, x, g, dx, size, cells);
        else
            table_backward<T, false, TAILS>(t, histogram, x, g, dx, size, cells);
    }

    int64_t pieces_of_work(bool by_unit) const {
        if (by_rows()) return at.outer;
        if (by_groups()) return (at.outer + samples() - 1) / samples();
        return by_unit ? at.units : (at.size() + run_length() - 1) / run_length();
    }

    void forward() const {
        const int64_t size = at.size(), length = run_length(), C = at.units;
        const int64_t runs = pieces_of_work(false);
        for_parts(count_parts(threads, runs, size), runs, [&](int64_t, int64_t first, int64_t last) {
            if (by_rows()) return rows<false>(first, last, Histogram<T>(), nullptr);
            if (by_groups()) return groups<false>(first, last, Histogram<T>(), nullptr);
            for (int64_t r = first; r < last; r++) {
                int64_t i = r * length;
                forward_run(tables[r % C], x + i, out + i, size - i < length ? size - i : length);
            }
        });
    }

    void backward(Cell* sums) const {
        const int64_t size = at.size(), length = run_length(), C = at.units;
        const Histogram<T> histogram = this->histogram();
        // one unit after the other where tables are large, else in the order of memory
        const bool by_unit = C > 1 && !by_rows() && !by_groups() && histogram.kind != FEW;
        const int64_t work = pieces_of_work(by_unit);
        const int64_t parts = count_parts(threads, work, size);
        const int64_t cells_each = (by_unit ? 1 : C) * histogram.size();
        Scratch scratch(parts * cells_each * sizeof(Cell));
        for_parts(parts, work, [&](int64_t part, int64_t first, int64_t last) {
            Cell* cells = scratch.as<Cell>() + part * cells_each;
            if (by_rows()) return rows<true>(first, last, histogram, cells);
            if (by_groups()) return groups<true>(first, last, histogram, cells);
            for (int64_t r = first; r < last && !by_unit; r++) {
                int64_t i = r * length, c = r % C, n = size - i < length ? size - i : length;
                backward_run(tables[c], histogram, x + i, g + i, out + i, n, cells + c * histogram.size());
            }
            for (int64_t c = first; c < last && by_unit; c++) {
                for (int64_t n = 0; n < at.outer; n++) {
                    int64_t i = (n * C + c) * length;
                    backward_run(tables[c], histogram, x + i, g + i, out + i, length, cells);
                }
                histogram.collect(cells, sums + c * histogram.sums());
            }
        });
        for (int64_t part = 0; part < parts; part++) {
            Cell* cells = scratch.as<Cell>() + part * cells_each;
            for (int64_t c = 0; c < C && !by_unit; c++)
                histogram.collect(cells + c * histogram.size(), sums + c * histogram.sums());
        }
    }

    // one run from x, g, and to out, where it may be x
    template <bool back>
    INLINE void one_run(const Lookup& w, int64_t unit, T* x, const T* g, int64_t size, const Histogram<T>& histogram,
                        Cell* cells) {
        if constexpr (back)
            backward_run(w.tables[unit], histogram, x, g, x, size, cells + unit * histogram.size());
        else
            forward_run(w.tables[unit], x, x, size);
    }

    // short runs: those of some samples are joined
    template <bool back>
    void groups(int64_t first, int64_t last, const Histogram<T>& histogram, Cell* cells) const {
        alignas(64) T own[GROUP + WIDTH<T>], down[GROUP + WIDTH<T>];
        const int64_t C = at.units, inner = at.inner;
        for (int64_t n = first * samples(); n < last * samples() && n < at.outer; n += samples()) {
            const int64_t count = at.outer - n < samples() ? at.outer - n : samples();
            for (int64_t c = 0; c < C; c++) {
                const int64_t start = (n * C + c) * inner;
                copy(x + start, C * inner, own, inner, count);
                if constexpr (back) copy(g + start, C * inner, down, inner, count);
                one_run<back>(*this, c, own, down, count * inner, histogram, cells);
                copy(own, inner, out + start, C * inner, count);
            }
        }
    }
    // ``count`` runs, each a step from the next
    void copy(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t count) const {
        constexpr int W = WIDTH<T>;
        for (int64_t k = 0; k < count; k++, from += from_step, to += to_step)
            for (int64_t i = 0; i < at.inner; i += W) {
                const int n = at.inner - i < W ? (int)(at.inner - i) : W;
                store(to + i, load(from + i, n), n);
            }
    }

    // units side by side: some rows of some units are turned round, worked on unit by unit, and turned back
    template <bool back>
    void rows(int64_t first, int64_t last, const Histogram<T>& histogram, Cell* cells) const {
        constexpr int W = WIDTH<T>;
        constexpr int64_t SIDE = 4 * W, ROWS = 2 * SIDE, STEP = ROWS + W;  // no power of two, which would thrash the cache
        const int64_t C = at.units;
        alignas(64) T own[SIDE * STEP], down[back ? SIDE * STEP : 1];
        for (int64_t top = first; top < last; top += ROWS) {
            const int64_t length = last - top < ROWS ? last - top : ROWS;
            for (int64_t c = 0; c < C; c += SIDE) {
                const int64_t side = C - c < SIDE ? C - c : SIDE, share = (ROWS + side - 1) / side;
                const int64_t next = c + SIDE < C ? c + SIDE : 0, wide = C - next < SIDE ? C - next : SIDE;
                const int64_t following = (next ? top : top + ROWS) * C + next;
                for (int64_t r = 0; r < length; r += W) {
                    const int64_t i = (top + r) * C + c, height = length - r < W ? length - r : W;
                    turn(x + i, C, height, side, own + r, STEP);
                    if constexpr (back) turn(g + i, C, height, side, down + r, STEP);
                }
                for (int64_t l = 0; l < side; l++) {
                    // beside the work some rows of what comes next
                    for (int64_t k = 0; k < share; k++) {
                        const int64_t row = following + (l * share + k) * C;
                        for (int64_t i = row; i < row + wide; i += W) {
                            __builtin_prefetch(x + i, 0, 2);
                            if (back) __builtin_prefetch(g + i, 0, 2);
                            __builtin_prefetch(out + i, 1, 2);
                        }
                    }
                    one_run<back>(*this, c + l, own + l * STEP, down + (back ? l * STEP : 0), length, histogram, cells);
                }
                for (int64_t r = 0; r < length; r += W)
                    turn(own + r, STEP, side, length - r < W ? length - r : W, out + (top + r) * C + c, C);
            }
        }
    }
};
