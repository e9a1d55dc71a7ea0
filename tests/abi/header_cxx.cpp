/* header_cxx.cpp: kr.h as a C++ program uses it; compiled, never run (tools/check_abi.py). */
#include "kr.h"

#include <cstddef>
#include <type_traits>

static_assert(std::is_same<kr_status_t, int32_t>::value, "statuses are int32");
static_assert(std::is_standard_layout<kr_session_params_t>::value, "params are plain structs");
static_assert(offsetof(kr_sampler_params_t, struct_bytes) == 0, "struct_bytes comes first");
static_assert(KR_E_INTERNAL == 27, "enumerators are visible");

kr_status_t open_and_close(const char *path);

kr_status_t open_and_close(const char *path) {
    kr_error_t error;
    kr_model_params_t params;
    kr_model_t model = nullptr;
    kr_error_init(&error);
    kr_model_params_init(&params);
    kr_status_t status = kr_model_open(path, &params, &model, &error);
    if (status == KR_OK) kr_model_close(model);
    return status;
}
