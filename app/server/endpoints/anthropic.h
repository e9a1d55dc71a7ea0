/* anthropic.h: what /v1/messages and /v1/messages/count_tokens share: the fields that make the
 * prompt. */
#ifndef SERVER_ENDPOINTS_ANTHROPIC_H
#define SERVER_ENDPOINTS_ANTHROPIC_H

#include "server/job.h"

/* Reads model, system, messages and what is refused beside them (tools, thinking, ...) into the
 * job's prompt. False: the reader's error is set. */
bool anthropic_read_prompt(job_t *job, json_reader_t *reader);

#endif
