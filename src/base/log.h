/* log.h: one-line messages to the callback of kr_log_set; nothing without one. */
#ifndef KRI_BASE_LOG_H
#define KRI_BASE_LOG_H
#include "kr.h"
void kri_log(kr_log_level_t level, const char *format, ...) __attribute__((format(printf, 2, 3)));
#endif
