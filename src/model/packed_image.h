/* packed_image.h: the packed weights of a model as a file of the artifact cache, and the tables of
 * its tokenizer as another. Found in two steps: the identity of the model's files (device, inode,
 * size, mtime of every part) leads to a small record with the hash of their content; that hash and
 * the layout version lead to the image and, with the version of the tables, to those. The layout
 * is the same for all ISA levels (ops/pack.h), so no level is in the key.
 * Index of an image, little-endian: u64 count of tensors, u64 bytes of data, per tensor
 * {u64 xxh3 of its name; u32 dtype, n_out, n_in, 0; u64 offset, bytes}, then one u64 xxh3 for
 * each block of 2 MiB of the data. Blocks are finer than most tensors, so that threads share the
 * check evenly; a tensor is good when all blocks it touches are. */
#ifndef KRI_MODEL_PACKED_IMAGE_H
#define KRI_MODEL_PACKED_IMAGE_H

#include <stdbool.h>

#include "kr.h"

struct kr_model_s;
typedef struct kri_image_s kri_image_t;

/* Less than this is packed faster than a file is worth. */
#define KRI_IMAGE_BYTES_MIN ((size_t)4 << 20)

/* Looks for what earlier runs kept of this file; model->image stays NULL when the cache is off.
 * Errors: KR_E_NOMEM only. */
kr_status_t kri_image_find(struct kr_model_s *model, const kr_model_params_t *params,
                           kr_error_t *error);
/* The tokenizer's tables in their mapping, until close; NULL: there are none. They were checked
 * against their hash, no more. drop: they turned out not to be of this model. */
const uint8_t *kri_image_tables(const struct kr_model_s *model, size_t *n_bytes);
void kri_image_drop_tables(struct kr_model_s *model);
/* Maps the image of a bound model; weights then point into it. Errors: KR_E_NOMEM only. */
kr_status_t kri_image_map(struct kr_model_s *model, kr_error_t *error);
bool kri_image_is_mapped(const struct kr_model_s *model);
/* Starts writing, in the background, what was not found: image, tables, record. */
void kri_image_write(struct kr_model_s *model, const kr_model_params_t *params);
/* Tells the background thread to hurry and waits for it; close also closes the mappings. */
void kri_image_stop(struct kr_model_s *model);
void kri_image_close(struct kr_model_s *model);
/* kr_cache_verify. */
kr_status_t kri_image_verify_all(const char *dir, kr_cache_fn fn, void *user, kr_error_t *error);

/* Checks the structure of an index against the bytes of data it describes, and finds the block
 * hashes in it. KR_E_BAD_FORMAT. */
kr_status_t kri_image_index_check(const uint8_t *index, size_t index_bytes, uint64_t data_bytes,
                                  const uint8_t **hashes);

#endif
