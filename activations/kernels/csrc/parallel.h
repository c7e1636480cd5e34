// Work is cut into as many parts as torch has threads, each with sums of its own that are added up in order: the same
// input with the same number of threads gives the same bits. The threads are torch's own.
#pragma once

#include "vec.h"

using Range = void (*)(int64_t begin, int64_t end, void* task);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, Range run, void* task);
extern ParallelFor torch_parallel_for;  // none: everything runs in the caller's thread

constexpr int64_t GRAIN = 16384;  // elements that are worth a thread

INLINE int64_t count_parts(int64_t threads, int64_t pieces, int64_t elements) {
    int64_t parts = elements / GRAIN;
    parts = parts < threads ? parts : threads;
    parts = parts < pieces ? parts : pieces;
    return parts > 1 && torch_parallel_for ? parts : 1;
}

// run(part, first, last) for each part of the pieces 0 ... count - 1
template <class Run>
INLINE void for_parts(int64_t parts, int64_t count, Run run) {
    struct Task {
        Run& run;
        int64_t parts, count;
    } task{run, parts, count};
    auto range = [](int64_t begin, int64_t end, void* p) {
        auto& task = *(Task*)p;
        for (int64_t i = begin; i < end; i++)
            task.run(i, task.count * i / task.parts, task.count * (i + 1) / task.parts);
    };
    if (parts == 1)
        range(0, 1, &task);
    else
        torch_parallel_for(0, parts, 1, range, &task);
}

// scratch memory of one call, on lines of its own; zeros, unless it is going to be overwritten
struct Scratch {
    char* memory;
    explicit Scratch(size_t bytes, bool zeros = true)
        : memory((char*)(zeros ? calloc(1, bytes + 64) : malloc(bytes + 64))) {}
    ~Scratch() { free(memory); }
    template <class T>
    T* as() const {
        return (T*)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
    }
};

// how an input lies in memory: (outer, units, inner), units being channels or 1
struct Layout {
    int64_t outer, units, inner;
    int64_t size() const { return outer * units * inner; }
};
