/* poison.h: manual AddressSanitizer poisoning; nothing in other builds.
 * Headers and gaps that no caller may touch are poisoned, so that a stray write by one is
 * reported where it happens. */
#ifndef KRI_BASE_POISON_H
#define KRI_BASE_POISON_H

#if defined(__SANITIZE_ADDRESS__)
#define KRI_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define KRI_ASAN 1
#endif
#endif
#ifndef KRI_ASAN
#define KRI_ASAN 0
#endif

#if KRI_ASAN
#include <sanitizer/asan_interface.h>
#define KRI_POISON(ptr, n_bytes) ASAN_POISON_MEMORY_REGION((ptr), (n_bytes))
#define KRI_UNPOISON(ptr, n_bytes) ASAN_UNPOISON_MEMORY_REGION((ptr), (n_bytes))
#else
#define KRI_POISON(ptr, n_bytes) ((void)(ptr), (void)(n_bytes))
#define KRI_UNPOISON(ptr, n_bytes) ((void)(ptr), (void)(n_bytes))
#endif

#endif
