/* dry.c: see dry.h. */
#include "dry.h"

#include "server/endpoints.h"

bool dry_run(job_t *job, const server_model_t *model) {
    void (*run)(call_t *call) = call_endpoint(job->call)->run;
    if (run == endpoint_explain) explain_job(job, model);
    else if (run == endpoint_apply_template) template_job(job, model);
    else return false;
    job_discard(job);
    return true;
}
