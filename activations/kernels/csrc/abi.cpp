#include "abi.h"

#include <string.h>

#include "pointwise.h"

// Lines of a function's name and its letters, or a constant's name and value; an empty text if ``size`` is too small for them.
extern "C" void abi(char* text, int64_t size) {
    char *to = text, *end = text + size;
    auto write = [&](const char* word, char after) {
        const int64_t n = (int64_t)strlen(word);
        if (to && end - to > n + 1) {
            memcpy(to, word, n);
            to[n] = after;
            to += n + 1;
        } else {
            to = nullptr;
        }
    };
    for (const Signature* s = Signature::last; s; s = s->before) {
        write(s->name, ' ');
        write(s->letters, '\n');
    }
    static_assert(MAX_PARAMS >= 10 && MAX_PARAMS < 100, "two digits are written");
    const char digits[] = {'0' + MAX_PARAMS / 10, '0' + MAX_PARAMS % 10, 0};
    write("MAX_PARAMS", ' ');
    write(digits, '\n');
    *(to ? to : text) = 0;
}
