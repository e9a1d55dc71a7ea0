/* sim_model.c: a model that is nothing but memory: the key of a row is its token, its position and
 * its tenant, written into every group's page; the answer is a hash of what the pages hold. */
#include "sim.h"

enum { KEY_TOKEN, KEY_POSITION, KEY_SALT, KEY_CHECK, KEY_ITEMS };

/* Layer 0, keys, head 0 of the page that position is in; the last layer's values lie at the end. */
static int32_t *key_at(const kri_kv_group_t *group, const uint32_t *table, uint32_t position) {
    uint8_t *page = group->pool + (size_t)table[position / 16] * group->page_bytes;
    return (int32_t *)(void *)(page + (size_t)(position % 16) * group->head_dim * 4);
}

static int32_t *last_value_at(const kri_kv_group_t *group, const uint32_t *table,
                              uint32_t position) {
    uint8_t *page = group->pool + ((size_t)table[position / 16] + 1) * group->page_bytes;
    return (int32_t *)(void *)(page - (size_t)(16 - position % 16) * group->head_dim * 4);
}

static void write_rows(const kri_step_t *step, const kri_step_seq_t *seq, uint64_t salt) {
    for (uint32_t r = 0; r < seq->n_rows; r++) {
        const uint32_t position = seq->pos_begin + r;
        const kr_token_t token = step->tokens[seq->row_begin + r];
        for (uint32_t g = 0; g < step->n_groups; g++) {
            int32_t *key = key_at(&step->groups[g], seq->page_table[g], position);
            key[KEY_TOKEN] = token;
            key[KEY_POSITION] = (int32_t)position;
            key[KEY_SALT] = (int32_t)(uint32_t)salt;
            key[KEY_CHECK] = token ^ (int32_t)position;
            last_value_at(&step->groups[g], seq->page_table[g], position)[0] = token;
        }
    }
}

/* Each row reads the full history or its window; the windows of all rows together begin at the
 * first row's. */
static bool read_rows(const kri_step_t *step, const kri_step_seq_t *seq, uint64_t salt,
                      uint64_t *hash, char *error, size_t error_bytes) {
    const uint32_t end = seq->pos_begin + seq->n_rows;
    uint64_t sum = SIM_HASH_START;
    for (uint32_t g = 0; g < step->n_groups; g++) {
        const kri_kv_group_t *group = &step->groups[g];
        const uint32_t window = group->window;
        uint32_t p = window > 0 && seq->pos_begin + 1 > window ? seq->pos_begin + 1 - window : 0;
        for (; p < end; p++) {
            const int32_t *key = key_at(group, seq->page_table[g], p);
            const int32_t *first = key_at(&step->groups[0], seq->page_table[0], p);
            if (key[KEY_POSITION] != (int32_t)p || key[KEY_SALT] != (int32_t)(uint32_t)salt ||
                key[KEY_CHECK] != (key[KEY_TOKEN] ^ (int32_t)p) ||
                key[KEY_TOKEN] != first[KEY_TOKEN] ||
                last_value_at(group, seq->page_table[g], p)[0] != key[KEY_TOKEN]) {
                snprintf(error, error_bytes,
                         "group %u of sequence %u at position %u holds token %d position %d salt "
                         "%d", g, seq->seq, p, key[KEY_TOKEN], key[KEY_POSITION], key[KEY_SALT]);
                return false;
            }
            if (g == 0) sum = sim_hash(sum, key[KEY_TOKEN]);
        }
    }
    *hash = sum;
    return true;
}

bool sim_model_run(const kri_plan_t *plan, uint64_t *hashes, char *error, size_t error_bytes) {
    const kri_step_t *step = &plan->step;
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        write_rows(step, &step->seqs[i], plan->tasks[i]->salt);
    }
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        const kri_step_seq_t *seq = &step->seqs[i];
        if (!read_rows(step, seq, plan->tasks[i]->salt, &hashes[i], error, error_bytes)) {
            return false;
        }
    }
    return true;
}

void sim_model_spoil(const kri_plan_t *plan) {
    const kri_step_t *step = &plan->step;
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        const kri_step_seq_t *seq = &step->seqs[i];
        for (uint32_t g = 0; g < step->n_groups; g++) {
            for (uint32_t p = seq->pos_begin; p < seq->pos_begin + seq->n_rows; p++) {
                memset(key_at(&step->groups[g], seq->page_table[g], p), 0xa5,
                       KEY_ITEMS * sizeof(int32_t));
            }
        }
    }
}
