// Piecewise-linear functions by table: y = value[p] + slope[p] (x - anchor[p]) on the piece p of x.
//
// The line is cut into up to three zones of equally wide pieces and two straight tails. The piece of an element is
// computed, not searched, and computed again in backward instead of stored. The parameters' gradients follow from the sums
// of g and of g (x - anchor) over the elements of each piece, a histogram with two doubles a cell.
#pragma once

#include "parallel.h"

template <class T>
struct Table {
    int zones;
    int64_t pieces;          // the left tail is piece 0, the right one the last
    T ends[4];               // of the zones
    T width[3], inverse[3];  // of a zone's pieces
    int64_t first[3], count[3];
    const T* pairs;  // value and slope of every piece, one after the other
};

// what a vector of elements needs to know of its tables
template <class T, int Z>
struct Zones {
    using V = Vec<T>;
    V ends[Z + 1], width[Z], inverse[Z], most[Z], first[Z];
    V last;

    INLINE Zones of(const Table<T>& t) {
        Zones z;
        for (int k = 0; k < Z; k++) {
            z.ends[k] = V(t.ends[k]), z.width[k] = V(t.width[k]), z.inverse[k] = V(t.inverse[k]);
            z.most[k] = V(T(t.count[k] ? t.count[k] - 1 : 0)), z.first[k] = V(T(t.first[k]));
        }
        z.ends[Z] = V(t.ends[Z]), z.last = V(T(t.pieces - 1));
        return z;
    }

    // the piece of each x, and how far it is from the piece's anchor
    INLINE IVec<T> find(const Zones& z, V x, V& beyond) {
        V origin = z.ends[0], width = z.width[0], inverse = z.inverse[0], most = z.most[0], first = z.first[0];
        for (int k = 1; k < Z; k++) {
            auto there = x >= z.ends[k];
            origin = there ? z.ends[k] : origin, width = there ? z.width[k] : width;
            inverse = there ? z.inverse[k] : inverse;
            most = there ? z.most[k] : most, first = there ? z.first[k] : first;
        }
        // the quotient rounded as by a division (Markstein's theorem): points on knots belong to the piece to the right
        V distance = x - origin, q = distance * inverse;
        q = fma(fma(-q, width, distance), inverse, q);
        V i = floor(q);
        i = i > V(0) ? i : V(0);  // NaN as well
        i = i < most ? i : most;
        auto left = x < z.ends[0], right = x >= z.ends[Z];
        beyond = x - (right ? z.ends[Z] : fma(width, i, origin));
        V piece = left ? V(0) : (right ? z.last : i + first);
        return __builtin_convertvector(piece, IVec<T>);
    }
};

// of the pairs of few pieces, held in registers
#ifdef __AVX512F__
constexpr int64_t SMALL = 32;
struct InRegisters {
    Vec<float> values[2], slopes[2];
    INLINE InRegisters of(const float* pairs, int64_t pieces) {
        alignas(64) float table[4][16] = {};
        for (int64_t p = 0; p < pieces; p++) {
            table[p / 16][p % 16] = pairs[2 * p];
            table[2 + p / 16][p % 16] = pairs[2 * p + 1];
        }
        return {{load(table[0]), load(table[1])}, {load(table[2]), load(table[3])}};
    }
    INLINE Vec<float> value(const InRegisters& t, IVec<float> at) {
        return _mm512_permutex2var_ps(t.values[0], (__m512i)at, t.values[1]);
    }
    INLINE Vec<float> slope(const InRegisters& t, IVec<float> at) {
        return _mm512_permutex2var_ps(t.slopes[0], (__m512i)at, t.slopes[1]);
    }
};
#else
constexpr int64_t SMALL = 0;
#endif

typedef double Cell __attribute__((ext_vector_type(2)));  // sums of g and of g (x - anchor)
constexpr int64_t CHUNK = 512;
constexpr int64_t FEW = 64;  // pieces that have eight cells each

// The histogram of one table. A sum that many elements in a row are added to is slow, each waits for the one before.
// So in a table of few pieces every piece has eight cells, for neighbours. In a larger one those on either side of
// [first, last), which may be hit often, share a cell for each lane: the tails, or what is not learnt.
template <class T>
struct Histogram {
    using I = typename Lanes<T>::Int;
    I pieces, first, last;
    bool few;
    Histogram(int64_t pieces, int64_t first, int64_t last)
        : pieces((I)pieces), first((I)first), last((I)last), few(pieces <= FEW) {}
    int64_t size() const { return few ? 8 * pieces : last - first + 2 * WIDTH<T>; }

    // the cell of each lane
    template <bool few>
    INLINE IVec<T> at(const Histogram& h, IVec<T> piece) {
        IVec<T> lane;
        for (int l = 0; l < WIDTH<T>; l++) lane[l] = l;
        if constexpr (few) return piece * 8 + (lane & 7);
        const I inside = h.last - h.first;
        IVec<T> cell = piece - h.first;
        cell = piece < h.first ? lane + inside : cell;
        return piece >= h.last ? lane + (inside + WIDTH<T>) : cell;
    }
    // add the cells up, by piece, and empty them; what is before ``first`` goes to the first piece
    void collect(Cell* cells, Cell* sums) const {
        const int64_t inside = last - first;
        for (int64_t i = 0; i < size(); i++) {
            int64_t p = few ? i / 8 : (i < inside ? first + i : (i < inside + WIDTH<T> ? 0 : pieces - 1));
            sums[p] += cells[i];
            cells[i] = Cell(0);
        }
    }
};

// work(i, at[i]) for all i; two places are read at a time, as reading them one by one would be a third of all reads
template <class Work>
INLINE void each(const int32_t* at, int64_t length, Work work) {
    int64_t i = 0;
    for (; i + 1 < length; i += 2) {
        uint64_t both;
        memcpy(&both, at + i, 8);
        work(i, (uint32_t)both);
        work(i + 1, both >> 32);
    }
    if (i < length) work(i, at[i]);
}
template <class Work>
INLINE void each(const int64_t* at, int64_t length, Work work) {
    for (int64_t i = 0; i < length; i++) work(i, at[i]);
}

// A chunk of elements between the loops over vectors and those over single elements. Reading a table one by one is faster
// than the gather instructions of the processors it was measured on.
template <class T>
struct Chunk {
    using V = Vec<T>;
    typedef T Pair __attribute__((ext_vector_type(2)));
    typedef T Both __attribute__((ext_vector_type(2 * WIDTH<T>)));
    alignas(64) Pair pairs[CHUNK];                    // value and slope, or g and x - anchor
    alignas(64) T numbers[CHUNK];                     // x - anchor, or the slope
    alignas(64) typename Lanes<T>::Int piece[CHUNK];  // and in backward the histogram's
    alignas(64) typename Lanes<T>::Int cell[CHUNK];

    INLINE void put(typename Lanes<T>::Int* to, IVec<T> v) { *(IVec<T>*)to = v; }
    INLINE void put(Pair* to, V a, V b) {
        if constexpr (WIDTH<T> == 16)
            *(Both*)to = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25,
                                                 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        else
            *(Both*)to = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
    }
    INLINE V value(const Pair* from) { return ((const Both*)from)->even; }
    INLINE V slope(const Pair* from) { return ((const Both*)from)->odd; }

    void read_pairs(const T* table, int64_t length) {
        each(piece, length, [&](int64_t i, int64_t p) { memcpy(pairs + i, table + 2 * p, sizeof(Pair)); });
    }
    void read_slopes(const T* table, int64_t length) {
        each(piece, length, [&](int64_t i, int64_t p) { numbers[i] = table[2 * p + 1]; });
    }
    // a product in float would show in sums that nearly cancel
    void count(int64_t length, Cell* cells) const {
        each(cell, length, [&](int64_t i, int64_t c) {
            Cell t = __builtin_convertvector(pairs[i], Cell);
            cells[c] = fma(t, Cell{1.0, t.x}, cells[c]);
        });
    }
};

template <class T, int Z, bool small>
INLINE void table_forward(const Table<T>& t, const T* x, T* y, int64_t size) {
    using V = Vec<T>;
    constexpr int W = WIDTH<T>;
    const auto zones = Zones<T, Z>::of(t);
    V beyond;
#ifdef __AVX512F__
    if constexpr (small) {
        const auto table = InRegisters::of(t.pairs, t.pieces);
        for (int64_t i = 0; i < size; i += W) {
            int n = size - i < W ? (int)(size - i) : W;
            auto piece = Zones<T, Z>::find(zones, load(x + i, n), beyond);
            store(y + i, fma(InRegisters::slope(table, piece), beyond, InRegisters::value(table, piece)), n);
        }
        return;
    }
#endif
    Chunk<T> chunk;
    for (int64_t start = 0; start < size; start += CHUNK) {
        int64_t length = size - start < CHUNK ? size - start : CHUNK;
        for (int64_t i = 0; i < length; i += W) {
            int n = length - i < W ? (int)(length - i) : W;
            chunk.put(chunk.piece + i, Zones<T, Z>::find(zones, load(x + start + i, n), beyond));
            store(chunk.numbers + i, beyond);
        }
        chunk.read_pairs(t.pairs, length);
        for (int64_t i = 0; i < length; i += W) {
            int n = length - i < W ? (int)(length - i) : W;
            V slope = chunk.slope(chunk.pairs + i), value = chunk.value(chunk.pairs + i);
            store(y + start + i, fma(slope, load(chunk.numbers + i), value), n);
        }
    }
}

template <class T, int Z, bool small, bool few>
INLINE void table_backward(const Table<T>& t, const Histogram<T>& histogram, const T* x, const T* g, T* dx, int64_t size,
                           Cell* cells) {
    using V = Vec<T>;
    constexpr int W = WIDTH<T>;
    const auto zones = Zones<T, Z>::of(t);
#ifdef __AVX512F__
    const auto table = InRegisters::of((const float*)t.pairs, small ? t.pieces : 0);
#endif
    Chunk<T> chunk;
    for (int64_t start = 0; start < size; start += CHUNK) {
        int64_t length = size - start < CHUNK ? size - start : CHUNK;
        for (int64_t i = 0; i < length; i += W) {
            int n = length - i < W ? (int)(length - i) : W;
            V beyond, down = load(g + start + i, n);
            // the next chunk arrives while this one is counted
            __builtin_prefetch(x + start + i + CHUNK);
            __builtin_prefetch(g + start + i + CHUNK);
            __builtin_prefetch(dx + start + i + CHUNK, 1);
            auto piece = Zones<T, Z>::find(zones, load(x + start + i, n), beyond);
            chunk.put(chunk.pairs + i, down, beyond);
            chunk.put(chunk.cell + i, Histogram<T>::template at<few>(histogram, piece));
#ifdef __AVX512F__
            if constexpr (small) store(dx + start + i, down * InRegisters::slope(table, piece), n);
#endif
            if constexpr (!small) chunk.put(chunk.piece + i, piece);
        }
        if constexpr (!small) {
            chunk.read_slopes(t.pairs, length);
            for (int64_t i = 0; i < length; i += W) {
                int n = length - i < W ? (int)(length - i) : W;
                store(dx + start + i, load(g + start + i, n) * load(chunk.numbers + i), n);
            }
        }
        chunk.count(length, cells);
    }
}

template <class T>
constexpr int64_t SMALL_OF = sizeof(T) == 4 ? SMALL : 0;

// run(zones, small, few) with all of them known to the compiler
#define BY_TABLE(t, run)                                                  \
    do {                                                                  \
        const bool few = (t).pieces <= FEW;                               \
        if ((t).zones == 1 && (t).pieces <= SMALL_OF<T>)                  \
            run(1, (SMALL_OF<T> > 0), true);                              \
        else if ((t).zones == 1 && few)                                   \
            run(1, false, true);                                          \
        else if ((t).zones == 1)                                          \
            run(1, false, false);                                         \
        else if (few)                                                     \
            run(3, false, true);                                          \
        else                                                              \
            run(3, false, false);                                         \
    } while (0)

// One table for each unit, laid out as ``at`` says. ``sums``, in backward: (units, pieces) cells, empty.
template <class T>
struct Lookup {
    Layout at;
    int64_t threads;
    const Table<T>* tables;
    const T *x, *g;
    T* out;
    const int64_t* learnt = nullptr;  // first and behind the last of the pieces whose sums are wanted, if not all are

    int64_t pieces() const { return tables->pieces; }
    bool by_rows() const { return at.units > 1 && at.inner == 1; }
    // the elements of one unit lie in ``outer`` runs of ``inner``; a single unit's are cut into runs
    int64_t run_length() const { return at.units > 1 ? at.inner : 16 * CHUNK; }

    static void forward_run(const Table<T>& t, const T* x, T* y, int64_t size) {
#define RUN(Z, small, few) table_forward<T, Z, small>(t, x, y, size)
        BY_TABLE(t, RUN);
#undef RUN
    }
    static void backward_run(const Table<T>& t, const Histogram<T>& histogram, const T* x, const T* g, T* dx, int64_t size,
                             Cell* cells) {
#define RUN(Z, small, few) table_backward<T, Z, small, few>(t, histogram, x, g, dx, size, cells)
        BY_TABLE(t, RUN);
#undef RUN
    }

    void forward() const {
        const int64_t size = at.size(), length = run_length(), C = at.units;
        const int64_t runs = by_rows() ? at.outer : (size + length - 1) / length;
        for_parts(count_parts(threads, runs, size), runs, [&](int64_t, int64_t first, int64_t last) {
            if (by_rows()) return rows<false>(first, last, nullptr);
            for (int64_t r = first; r < last; r++) {
                int64_t i = r * length;
                forward_run(tables[r % C], x + i, out + i, size - i < length ? size - i : length);
            }
        });
    }

    void backward(Cell* sums) const {
        const int64_t size = at.size(), length = run_length(), C = at.units, P = pieces();
        const Histogram<T> histogram(P, learnt ? learnt[0] : 1, learnt ? learnt[1] : P - 1);
        // one unit after the other where tables are large, else in the order of memory
        const bool by_unit = C > 1 && !by_rows() && !histogram.few;
        const int64_t work = by_rows() ? at.outer : (by_unit ? C : (size + length - 1) / length);
        const int64_t parts = count_parts(threads, work, size);
        const int64_t cells_each = by_rows() ? C * P : (by_unit ? 1 : C) * histogram.size();
        Scratch scratch(parts * cells_each * sizeof(Cell));
        for_parts(parts, work, [&](int64_t part, int64_t first, int64_t last) {
            Cell* cells = scratch.as<Cell>() + part * cells_each;
            if (by_rows()) return rows<true>(first, last, cells);
            for (int64_t r = first; r < last && !by_unit; r++) {
                int64_t i = r * length, c = r % C, n = size - i < length ? size - i : length;
                backward_run(tables[c], histogram, x + i, g + i, out + i, n, cells + c * histogram.size());
            }
            for (int64_t c = first; c < last && by_unit; c++) {
                for (int64_t n = 0; n < at.outer; n++) {
                    int64_t i = (n * C + c) * length;
                    backward_run(tables[c], histogram, x + i, g + i, out + i, length, cells);
                }
                histogram.collect(cells, sums + c * P);
            }
        });
        for (int64_t part = 0; part < parts; part++) {
            Cell* cells = scratch.as<Cell>() + part * cells_each;
            for (int64_t i = 0; i < C * P && by_rows(); i++) sums[i] += cells[i];
            for (int64_t c = 0; c < C && !by_rows() && !by_unit; c++)
                histogram.collect(cells + c * histogram.size(), sums + c * P);
        }
    }

    // units side by side, each lane with a table of its own (of one zone)
    template <bool back>
    void rows(int64_t first, int64_t last, Cell* sums) const {
        using V = Vec<T>;
        constexpr int W = WIDTH<T>;
        const int64_t C = at.units, P = pieces();
        constexpr int64_t ROWS = CHUNK / W;
        Chunk<T> chunk;
        for (int64_t top = first; top < last; top += ROWS) {
            const int64_t bottom = top + ROWS < last ? top + ROWS : last, length = (bottom - top) * W;
            for (int64_t c = 0; c < C; c += W) {
                int n = C - c < W ? (int)(C - c) : W;
                Zones<T, 1> zones = Zones<T, 1>::of(tables[c]);
                IVec<T> base;
                for (int l = 0; l < W; l++) {
                    const int64_t u = l < n ? c + l : c;  // lanes without a unit count nothing, as g is 0
                    zones.ends[0][l] = tables[u].ends[0], zones.ends[1][l] = tables[u].ends[1];
                    zones.width[0][l] = tables[u].width[0], zones.inverse[0][l] = tables[u].inverse[0];
                    base[l] = (typename Lanes<T>::Int)(u * P);
                }
                V beyond;
                for (int64_t r = top, k = 0; r < bottom; r++, k += W) {
                    chunk.put(chunk.piece + k, Zones<T, 1>::find(zones, load(x + r * C + c, n), beyond) + base);
                    if constexpr (back)
                        chunk.put(chunk.pairs + k, load(g + r * C + c, n), beyond);
                    else
                        store(chunk.numbers + k, beyond);
                }
                if constexpr (back) {
                    chunk.read_slopes(tables->pairs, length);
                    memcpy(chunk.cell, chunk.piece, length * sizeof(*chunk.cell));
                    chunk.count(length, sums);
                } else {
                    chunk.read_pairs(tables->pairs, length);
                }
                for (int64_t r = top, k = 0; r < bottom; r++, k += W) {
                    V number = load(chunk.numbers + k);
                    if constexpr (back)
                        store(out + r * C + c, load(g + r * C + c, n) * number, n);
                    else
                        store(out + r * C + c, fma(chunk.slope(chunk.pairs + k), number, chunk.value(chunk.pairs + k)), n);
                }
            }
        }
    }
};
