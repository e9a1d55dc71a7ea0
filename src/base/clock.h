/* clock.h: monotonic time. */
#ifndef KRI_BASE_CLOCK_H
#define KRI_BASE_CLOCK_H
#include <stdint.h>
uint64_t kri_clock_ns(void);
#endif
