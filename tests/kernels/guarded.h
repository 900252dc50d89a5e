/* What the generated half of a test says of its kernels, and their buffers one after the other. */
#include <stddef.h>

enum { READ = 0, OUTPUT = 1, SCRATCH = 2 };

struct shape { size_t bytes, element; int kind; };
struct kernel { int buffers; void (*call)(void **); };

extern const struct shape shapes[];
extern const struct kernel kernels[];
extern const int count;
