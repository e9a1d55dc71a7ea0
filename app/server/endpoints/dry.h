/* dry.h: endpoints that tell what a generation would be without running it: they are given the body
 * of a generating endpoint, whose parser makes the job, and answer where it would run. */
#ifndef SERVER_ENDPOINTS_DRY_H
#define SERVER_ENDPOINTS_DRY_H

#include "server/job.h"
#include "server/server.h"

/* For job_run: true when the call's endpoint is one of these: the job is answered and freed. */
bool dry_run(job_t *job, const server_model_t *model);

/* The two of them. */
void explain_job(job_t *job, const server_model_t *model);
void template_job(job_t *job, const server_model_t *model);

#endif
