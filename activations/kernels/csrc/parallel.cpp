#include "parallel.h"

ParallelFor torch_parallel_for = nullptr;

extern "C" void set_parallel_for(ParallelFor function) { torch_parallel_for = function; }
