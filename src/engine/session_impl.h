/* session_impl.h: what the files of a session share. */
#ifndef KRI_ENGINE_SESSION_IMPL_H
#define KRI_ENGINE_SESSION_IMPL_H

#include "engine/batch.h"
#include "engine/session.h"
#include "engine/session_cuda.h"
#include "model/model.h"

struct kr_session_s {
    struct kr_model_s *model;
    kr_session_info_t info;
    kri_kernels_t kernels;
    kri_kv_pool_t *kv;
    kri_exec_t exec;
    kri_state_t state;
    kri_batch_space_t space; /* arrays of the step under way */
    kri_session_cuda_t *cuda; /* with KR_DEVICE_CUDA; exec and state are its own then, but
                              * state.branch: hidden states on the host */
    uint8_t *scratch;        /* all of the above in one block of pages */
    size_t scratch_bytes;
    uint32_t cancel, running; /* atomic */
    kr_telemetry_t telemetry;
};

#endif
