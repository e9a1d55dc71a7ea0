/* checked.h: the only place where sizes of outside origin are multiplied and added.
 * Each function returns true on success and leaves *out untouched on overflow. */
#ifndef KRI_BASE_CHECKED_H
#define KRI_BASE_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool kri_mul_u64(uint64_t a, uint64_t b, uint64_t *out) {
    uint64_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}
static inline bool kri_add_u64(uint64_t a, uint64_t b, uint64_t *out) {
    uint64_t r;
    if (__builtin_add_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}
static inline bool kri_mul_size(size_t a, size_t b, size_t *out) {
    size_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}
static inline bool kri_add_size(size_t a, size_t b, size_t *out) {
    size_t r;
    if (__builtin_add_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}
/* Rounds up to a power-of-two alignment. */
static inline bool kri_align_size(size_t a, size_t align, size_t *out) {
    size_t r;
    if (__builtin_add_overflow(a, align - 1, &r)) return false;
    *out = r & ~(align - 1);
    return true;
}
static inline bool kri_align_u64(uint64_t a, uint64_t align, uint64_t *out) {
    uint64_t r;
    if (__builtin_add_overflow(a, align - 1, &r)) return false;
    *out = r & ~(align - 1);
    return true;
}
/* An array at *at: its offset, and *at behind it at the next multiple of align. On overflow *at
 * stays as it was. */
static inline bool kri_place(size_t *at, size_t count, size_t item, size_t align, size_t *offset) {
    size_t end = 0;
    *offset = *at;
    return kri_mul_size(count, item, &end) && kri_add_size(*at, end, &end) &&
           kri_align_size(end, align, at);
}
/* Division rounded up, for counts of blocks; b > 0. */
static inline size_t kri_ceil_div(size_t a, size_t b) { return a / b + (a % b != 0); }

#endif
