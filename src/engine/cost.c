/* cost.c: see cost.h. Recursive least squares in information form. Old information is forgotten
 * only in the direction of the new features (directional forgetting): serving repeats nearly the
 * same step for seconds, and plain forgetting would lose in that time what all other steps cost. */
#include "engine/cost.h"

#include <math.h>

#define N KRI_COST_FEATURES
static const double FORGET = 0.95;       /* memory of about 20 like steps */
static const double KEEP = 0.99;         /* and of about 100 others */
static const double KEEP_CHANGED = 0.5;  /* when the machine has changed */
static const double DAMPING = 0.02;      /* of one step's information */
static const double MARGIN_START = 0.25; /* overshoot assumed before any was measured */
static const double OVER_ALLOWED = 1.03; /* the rarest steps may end here, times the bound */
static const double LIMIT_LEAST = 0.6;   /* of the bound, however noisy the machine */
static const uint32_t WARM = 8;          /* steps until errors are judged */

void kri_cost_init(kri_cost_t *cost) {
    *cost = (kri_cost_t){0};
}

/* Scaled so that common steps have features of about one. */
static void decode_features(const kri_cost_rows_t *rows, double f[N]) {
    f[0] = 1.0;
    f[1] = rows->n_decode / 8.0;
    f[2] = rows->keys_decode / 4096.0;
    f[3] = 0;
}

static void prefill_features(const kri_cost_rows_t *rows, double f[N]) {
    f[0] = rows->n_decode > 0;
    f[1] = rows->n_decode == 0;
    f[2] = rows->n_prefill / 64.0;
    f[3] = rows->keys_prefill / 65536.0;
}

static double dot(const double a[N], const double b[N]) {
    double sum = 0;
    for (int i = 0; i < N; i++) sum += a[i] * b[i];
    return sum;
}

static double decode_ms(const kri_cost_t *cost, const kri_cost_rows_t *rows) {
    double f[N];
    decode_features(rows, f);
    return rows->n_decode > 0 ? dot(cost->decode.coef, f) : 0;
}

/* What prompt rows add may be less than their constant says when weights are read anyway, but it
 * is never negative. */
static double predict_ms(const kri_cost_t *cost, const kri_cost_rows_t *rows) {
    double f[N], ms = decode_ms(cost, rows);
    if (rows->n_prefill == 0) return ms;
    prefill_features(rows, f);
    return ms + fmax(dot(cost->prefill.coef, f), 0);
}

double kri_cost_predict_ns(const kri_cost_t *cost, const kri_cost_rows_t *rows) {
    return predict_ms(cost, rows) * 1e6;
}

/* x = (info + damping I)^-1 f by Cholesky's method. Damping keeps directions of which little is
 * known from being thrown about by noise. */
static void solve(const double info[N][N], double damping, const double f[N], double x[N]) {
    double l[N][N];
    for (int i = 0; i < N; i++) {
        for (int j = 0; j <= i; j++) {
            double sum = info[i][j] + (i == j ? damping : 0);
            for (int k = 0; k < j; k++) sum -= l[i][k] * l[j][k];
            l[i][j] = i == j ? sqrt(fmax(sum, 0.5 * damping)) : sum / l[j][j];
        }
    }
    for (int i = 0; i < N; i++) {
        double sum = f[i];
        for (int k = 0; k < i; k++) sum -= l[i][k] * x[k];
        x[i] = sum / l[i][i];
    }
    for (int i = N - 1; i >= 0; i--) {
        double sum = x[i];
        for (int k = i + 1; k < N; k++) sum -= l[k][i] * x[k];
        x[i] = sum / l[i][i];
    }
}

/* keep: the part of what is known in all directions that stays. */
static void update(kri_cost_fit_t *fit, const double f[N], double error, double keep) {
    double g[N], x[N];
    for (int i = 0; i < N; i++) g[i] = dot(fit->info[i], f);
    const double known = dot(g, f);
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < N; j++) {
            if (known > 0) fit->info[i][j] -= (1 - FORGET) * g[i] * g[j] / known;
            fit->info[i][j] = keep * fit->info[i][j] + f[i] * f[j];
        }
    }
    solve(fit->info, DAMPING * dot(f, f), f, x);
    for (int i = 0; i < N; i++) fit->coef[i] += x[i] * error;
}

/* error: relative; f: the features over the same unit of time. */
static void learn(kri_cost_fit_t *fit, const double f[N], double error) {
    const double most = fmax(3 * fit->spread, 0.03), last = fit->last_error;
    const int is_far = fit->n_measured >= WARM && fabs(error) > most;
    double keep = KEEP;
    fit->last_error = error;
    fit->spread += (fit->n_measured < WARM ? 0.3 : 0.1) * (fmin(fabs(error), 1) - fit->spread);
    /* The step before was as far out to the same side: the machine has changed. */
    if (is_far && fabs(last) > most && last * error > 0) keep = KEEP_CHANGED;
    else if (is_far) error = error > 0 ? most : -most;
    update(fit, f, error, keep);
    fit->n_measured++;
}

void kri_cost_learn(kri_cost_t *cost, const kri_cost_rows_t *rows, uint64_t step_ns) {
    if (step_ns == 0 || rows->n_decode + rows->n_prefill == 0) return;
    const double measured = (double)step_ns / 1e6, predicted = predict_ms(cost, rows);
    if (rows->n_decode > 0 && rows->n_prefill > 0 && cost->prefill.n_measured > 0) {
        cost->over[cost->n_mixed++ % KRI_COST_RECENT] =
            (float)(measured / fmax(predicted, 0.1 * measured) - 1);
    }
    if (rows->n_prefill > cost->n_prefill_seen) cost->n_prefill_seen = rows->n_prefill;
    /* Relative to the expected time; the measured one bounds it, since an early prediction may be
     * far off. */
    const double unit = fmin(fmax(predicted, 0.5 * measured), 2 * measured);
    kri_cost_fit_t *fit = rows->n_prefill > 0 ? &cost->prefill : &cost->decode;
    double f[N];
    if (rows->n_prefill > 0) prefill_features(rows, f);
    else decode_features(rows, f);
    for (int i = 0; i < N; i++) f[i] /= unit;
    learn(fit, f, (measured - predicted) / unit);
    /* More rows never take less time. */
    const int first = rows->n_prefill > 0 ? 2 : 0;
    for (int i = first; i < N; i++) fit->coef[i] = fmax(fit->coef[i], 0);
    cost->n_measured++;
}

void kri_cost_learn_overhead(kri_cost_t *cost, uint64_t overhead_ns, uint64_t max_stall_ns) {
    const double most = (double)max_stall_ns / 4;
    const double ns = fmin((double)overhead_ns, most);
    cost->overhead_ns += (ns - cost->overhead_ns) * (ns > cost->overhead_ns ? 0.3 : 0.05);
}

/* The second largest recent overshoot: one outlier in the window does not count. */
static double margin(const kri_cost_t *cost) {
    const uint64_t n = cost->n_mixed < KRI_COST_RECENT ? cost->n_mixed : KRI_COST_RECENT;
    float first = 0, second = 0;
    for (uint64_t i = 0; i < n; i++) {
        const float over = cost->over[i];
        if (over > first) {
            second = first;
            first = over;
        } else if (over > second) {
            second = over;
        }
    }
    if (n >= WARM) return second;
    return fmax(fmin(first, 1), MARGIN_START * (1 - (double)n / WARM));
}

double kri_cost_limit_ns(const kri_cost_t *cost, uint64_t max_stall_ns) {
    const double bound = fmax((double)max_stall_ns - cost->overhead_ns, 0.1 * (double)max_stall_ns);
    const double share = OVER_ALLOWED / (1 + margin(cost));
    return bound * fmin(1, fmax(LIMIT_LEAST, share));
}

uint32_t kri_cost_trusted_rows(const kri_cost_t *cost, uint32_t n_rows_min) {
    const uint32_t n = cost->n_prefill_seen < 1u << 30 ? 2 * cost->n_prefill_seen : 1u << 31;
    return n > n_rows_min ? n : n_rows_min;
}
