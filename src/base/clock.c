/* clock.c: monotonic time in nanoseconds; the vDSO makes this a few dozen cycles. */
#include "base/clock.h"

#include <time.h>

uint64_t kri_clock_ns(void) {
    struct timespec now;
    if (clock_gettime(CLOCK_MONOTONIC, &now) != 0) return 0;
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}
