// Stands before MLX's header of this name, which every kernel includes first, and lets g++ make vectors of the kernel's
// loops. Without it g++ asks at run time whether an output overlaps an input, and takes number by number where MLX lets
// a kernel write into one of its inputs: six times slower. There each number is written where the same one was read, so
// no turn of the loop depends on another.
#include_next "mlx/backend/cpu/compiled_preamble.h"
#if defined(__GNUC__) && !defined(__clang__)
#define for _Pragma("GCC ivdep") for
#endif
