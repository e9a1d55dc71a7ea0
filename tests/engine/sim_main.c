/* sim_main.c: sim [--seeds A[:B]] [--trace] | --bench. Prints each seed that fails with its reason;
 * exit status 1 if any. A run of 100 seeds and more must have met every kind of event. */
#include "sim.h"

static bool parse_u64(const char **at, uint64_t *out) {
    char *end;
    const unsigned long long n = strtoull(*at, &end, 10);
    if (end == *at) return false;
    *at = end;
    *out = n;
    return true;
}

static bool parse_seeds(const char *text, uint64_t *first, uint64_t *last) {
    if (!parse_u64(&text, first)) return false;
    *last = *first;
    if (*text == ':') {
        text++;
        if (!parse_u64(&text, last)) return false;
    }
    return *text == '\0' && *first <= *last;
}

static int report(const sim_totals_t *t, uint64_t n_seeds, uint64_t n_failed) {
    const struct {
        const char *name;
        uint64_t n;
    } rows[] = {
        {"done", t->n_done}, {"cancelled", t->n_cancelled}, {"expired", t->n_expired},
        {"failed", t->n_numeric}, {"refused (never fits)", t->n_refused},
        {"refused (queue full)", t->n_busy}, {"aborted steps", t->n_aborted},
        {"preemptions", t->n_preempted}, {"pinned", t->n_pinned}, {"forked", t->n_forked},
        {"tokens from the cache", t->n_cached}, {"pages evicted", t->n_evicted},
        {"resizes", t->n_resized}, {"idle steps", t->n_idle_steps},
        {"embedded", t->n_embedded}, {"means begun anew", t->n_repooled}};
    printf("%llu seeds, %llu requests, %llu steps, %llu tokens, %llu failed\n",
           (unsigned long long)n_seeds, (unsigned long long)t->n_requests,
           (unsigned long long)t->n_steps, (unsigned long long)t->n_tokens,
           (unsigned long long)n_failed);
    int rc = n_failed > 0;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        printf("  %-22s %llu\n", rows[i].name, (unsigned long long)rows[i].n);
        if (n_seeds >= 100 && rows[i].n == 0) {
            printf("  ^ never happened: the simulation has gone blind\n");
            rc = 1;
        }
    }
    if (t->n_done + t->n_cancelled + t->n_expired + t->n_numeric != t->n_requests && !n_failed) {
        printf("requests do not add up\n");
        rc = 1;
    }
    return rc;
}

int main(int argc, char **argv) {
    uint64_t first = 1, last = 300, n_failed = 0;
    bool trace = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--bench") == 0) return sim_bench();
        if (strcmp(argv[i], "--trace") == 0) {
            trace = true;
        } else if (strcmp(argv[i], "--seeds") == 0 && i + 1 < argc &&
                   parse_seeds(argv[i + 1], &first, &last)) {
            i++;
        } else {
            fprintf(stderr, "usage: sim [--seeds A[:B]] [--trace] | --bench\n");
            return 64;
        }
    }
    sim_totals_t totals = {0};
    for (uint64_t seed = first; seed <= last && n_failed < 20; seed++) {
        char error[600];
        if (sim_run(seed, trace, &totals, error, sizeof error)) continue;
        n_failed++;
        printf("FAILED %s\n  replay: sim --seeds %llu --trace\n", error,
               (unsigned long long)seed);
        fflush(stdout);
    }
    return report(&totals, last - first + 1, n_failed);
}
