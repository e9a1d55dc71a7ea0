/* text_tools.h: what /tokenize, /detokenize and /apply-template share. */
#ifndef SERVER_ENDPOINTS_TEXT_TOOLS_H
#define SERVER_ENDPOINTS_TEXT_TOOLS_H

#include "server/server.h"

#define TEXT_TOOLS_BYTES_MAX ((size_t)256 << 20) /* of an answer */

/* Reads "model": NULL with a mistake set when there is none of this name. */
const server_model_t *text_tools_read_model(call_t *call, json_reader_t *reader);
/* Answers with the buffer, or with what went wrong in it, and frees it. */
void text_tools_reply(call_t *call, kri_buffer_t *out);

#endif
