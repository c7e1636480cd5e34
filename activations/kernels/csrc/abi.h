#pragma once
// The table of exported functions that kernels/library.py compares with its own when it loads the file: every function's
// name and the letters of its arguments, which the compiler derives from its type.
#include <stdint.h>

template <class T>
struct Letter;
template <class T>
struct Letter<T*> {
    static constexpr char value = 'p';
};
template <>
struct Letter<int64_t> {
    static constexpr char value = 'i';
};
template <>
struct Letter<double> {
    static constexpr char value = 'd';
};

struct Signature {
    static inline const Signature* last = nullptr;
    const Signature* before;
    const char *name, *letters;

    template <class... Arguments>
    Signature(const char* name, void (*)(Arguments...)) : before(last), name(name), letters(text<Arguments...>) {
        last = this;
    }

private:
    template <class... Arguments>
    static constexpr char text[] = {Letter<Arguments>::value..., 0};
};

#define SIGNATURE(symbol) static const Signature signature_of_##symbol(#symbol, symbol);
