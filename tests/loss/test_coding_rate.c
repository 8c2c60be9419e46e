/* Values of the coding rate: against the official code, finite differences, and what must hold of any log-determinant.
 */
#include "rows.h"
#include "support/golden.h"

/* ---- golden -------------------------------------------------------------------------------- */

static const char *const files[] = {"wide",  "tall",     "single",   "rankdef",
                                    "square", "large",   "wide_raw", "tall_raw"};

/* Stored rows, column sums and norm of the gradient of eps number e. */
static void check_gradient(const golden *g, size_t e, const double *grad, size_t n, size_t d, double absolute,
                           double summed, const char *what) {
    const golden_array *rows = golden_get(g, "grad_rows");
    const double *expected = golden_f64(g, "grad"), *colsum = golden_f64(g, "grad_colsum");
    double norm = 0.0;

    for (size_t r = 0; r < rows->count; r++) {
        size_t row = (size_t)golden_number(rows, r);
        for (size_t j = 0; j < d; j++)
            assert_near(grad[row * d + j], expected[(e * rows->count + r) * d + j], absolute, what);
    }
    for (size_t j = 0; j < d; j++) {
        double sum = 0.0;
        for (size_t i = 0; i < n; i++)
            sum += grad[i * d + j];
        assert_near(sum, colsum[e * d + j], summed, what);
    }
    for (size_t i = 0; i < n * d; i++)
        norm += grad[i] * grad[i];
    double allowed = absolute * sqrt((double)(n * d));
    assert_near(sqrt(norm), golden_f64(g, "grad_norm")[e], allowed, what);
}

static void test_golden(void **state) {
    (void)state;
    for (size_t f = 0; f < sizeof(files) / sizeof(*files); f++) {
        char name[64];
        snprintf(name, sizeof(name), "coding_rate/%s.npz", files[f]);
        golden *g = golden_open(name);
        const golden_array *z_array = golden_get(g, "Z"), *eps = golden_get(g, "eps");
        const float *z = golden_f32(g, "Z");
        size_t n = z_array->shape[0], d = z_array->shape[1], rows = golden_get(g, "grad_rows")->count;
        double *z64 = widened(z, n * d), *grad64 = DOUBLES(n * d);
        float *grad = FLOATS(n * d);

        assert_relative(sd_coding_rate_gamma(n, d), golden_f64(g, "gamma")[0], 1e-14, "gamma");
        for (size_t e = 0; e < eps->count; e++) {
            double eps_sq = golden_number(eps, e), expected = golden_f64(g, "value")[e], rate = 0.0;
            double most = largest(golden_f64(g, "grad") + e * rows * d, rows * d);
            /* The reference factorises the d x d matrix, which costs it digits where that is the larger one. */
            bool limited = strcmp(files[f], "wide_raw") == 0 && e == eps->count - 1;
            char what[96];

            snprintf(what, sizeof(what), "%s, eps %g, double", files[f], eps_sq);
            assert_int_equal(sd_coding_rate_f64(z64, n, d, d, eps_sq, &rate, grad64, d), SD_OK);
            assert_relative(rate, expected, 1e-10, what);
            double tolerance = (limited ? 2e-8 : 1e-10) * most;
            check_gradient(g, e, grad64, n, d, tolerance, tolerance * (double)n, what);
            assert_relative(sd_coding_rate_gamma(n, d) * rate, golden_f64(g, "expansion_v1")[e], 1e-10, what);
            assert_relative(sd_coding_rate_gamma(n, d) * rate, golden_f64(g, "expansion_v2")[e], 1e-10, what);

            snprintf(what, sizeof(what), "%s, eps %g, float", files[f], eps_sq);
            assert_int_equal(sd_coding_rate(z, n, d, d, eps_sq, &rate, grad, d), SD_OK);
            assert_relative(rate, expected, 1e-5, what);
            double *wide = widened(grad, n * d);
            tolerance = 10.0 * golden_f64(g, "grad_err32")[e] + 2e-6 * most;
            check_gradient(g, e, wide, n, d, tolerance, tolerance * (double)n, what);
            /* That tolerance is the reference's own float error, which is large where it works on the larger side.
             * Ours is held to 1e-5 in norm and 2e-5 of the largest entry by itself. */
            double error = 0.0, norm = 0.0, most64 = largest(grad64, n * d);
            for (size_t i = 0; i < n * d; i++) {
                error += (wide[i] - grad64[i]) * (wide[i] - grad64[i]);
                norm += grad64[i] * grad64[i];
                assert_near(wide[i], grad64[i], 2e-5 * most64, what);
            }
            assert_true(sqrt(error) <= 1e-5 * sqrt(norm));
            free(wide);
        }
        if (golden_has(g, "Z64")) {
            const double *exact = golden_f64(g, "Z64");
            for (size_t e = 0; e < eps->count; e++) {
                double rate = 0.0;
                assert_int_equal(sd_coding_rate_f64(exact, n, d, d, golden_number(eps, e), &rate, NULL, 0), SD_OK);
                assert_relative(rate, golden_f64(g, "value_Z64")[e], 1e-10, "value of Z64");
            }
        }
        free(z64);
        free(grad64);
        free(grad);
        golden_close(g);
    }
}

/* gamma * mean of R over three views, and the scale of several processes without a summed Gram. */
static void test_golden_multiview(void **state) {
    (void)state;
    golden *g = golden_open("coding_rate/multiview.npz");
    const golden_array *feats = golden_get(g, "feats"), *eps = golden_get(g, "eps");
    const golden_array *worlds = golden_get(g, "world_sizes");
    size_t views = feats->shape[0], m = feats->shape[1], p = feats->shape[2];
    const float *z = golden_f32(g, "feats");
    double *z64 = widened(z, views * m * p), *grad = DOUBLES(m * p);

    for (size_t w = 0; w < worlds->count; w++) {
        double world = golden_number(worlds, w);
        double gamma = sd_coding_rate_gamma(m * (size_t)world, p);
        assert_relative(gamma, golden_f64(g, "gamma")[w], 1e-14, "gamma");
        for (size_t e = 0; e < eps->count; e++) {
            double eps_sq = golden_number(eps, e) * world, sum = 0.0, sum_float = 0.0, rate = 0.0;
            for (size_t v = 0; v < views; v++) {
                assert_int_equal(sd_coding_rate_f64(z64 + v * m * p, m, p, p, eps_sq, &rate, grad, p), SD_OK);
                sum += rate / (double)views;
                if (world == 1.0) {
                    const double *expected = golden_f64(g, "grad") + (e * views + v) * m * p;
                    double most = largest(golden_f64(g, "grad") + e * views * m * p, views * m * p);
                    for (size_t i = 0; i < m * p; i++)
                        assert_near(gamma / (double)views * grad[i], expected[i], 1e-10 * most, "multiview gradient");
                }
                assert_int_equal(sd_coding_rate(z + v * m * p, m, p, p, eps_sq, &rate, NULL, 0), SD_OK);
                sum_float += rate / (double)views;
            }
            assert_relative(gamma * sum, golden_f64(g, "expansion_v1")[w * eps->count + e], 1e-10, "expansion v1");
            assert_relative(gamma * sum, golden_f64(g, "expansion_v2")[w * eps->count + e], 1e-10, "expansion v2");
            assert_relative(gamma * sum_float, golden_f64(g, "expansion_v1")[w * eps->count + e], 1e-5,
                            "expansion, float");
        }
    }
    free(z64);
    free(grad);
    golden_close(g);
}

/* ---- finite differences -------------------------------------------------------------------- */

static const size_t shapes[][2] = {{7, 5}, {5, 7}, {6, 6}, {1, 9}, {9, 1}, {1, 1}, {300, 4}, {4, 300}};

static void test_finite_differences(void **state) {
    (void)state;
    for (size_t s = 0; s < sizeof(shapes) / sizeof(*shapes); s++) {
        size_t n = shapes[s][0], d = shapes[s][1], ld = d + 3;
        double *z = DOUBLES(n * ld), *grad = DOUBLES(n * ld), step = 1e-5;
        fill(z, n * ld, 11 + s);
        assert_int_equal(sd_coding_rate_f64(z, n, d, ld, 0.3, NULL, grad, ld), SD_OK);
        for (size_t i = 0; i < n; i++) {
            for (size_t j = 0; j < d; j++) {
                double keep = z[i * ld + j], above, below;
                z[i * ld + j] = keep + step;
                assert_int_equal(sd_coding_rate_f64(z, n, d, ld, 0.3, &above, NULL, 0), SD_OK);
                z[i * ld + j] = keep - step;
                assert_int_equal(sd_coding_rate_f64(z, n, d, ld, 0.3, &below, NULL, 0), SD_OK);
                z[i * ld + j] = keep;
                assert_near(grad[i * ld + j], (above - below) / (2.0 * step), 1e-8, "gradient");
            }
            for (size_t j = d; j < ld; j++) /* padding is left alone */
                assert_true(grad[i * ld + j] == 0.0);
        }
        free(z);
        free(grad);
    }
}

static void test_gram_finite_differences(void **state) {
    (void)state;
    const size_t d = 6, n = 9, ld = 8;
    double *z = DOUBLES(n * d), *gram = DOUBLES(d * ld), *dgram = DOUBLES(d * ld), rate, rows_rate;
    fill(z, n * d, 5);
    for (size_t i = 0; i < d; i++)
        for (size_t j = 0; j < d; j++)
            for (size_t r = 0; r < n; r++)
                gram[i * ld + j] += z[r * d + i] * z[r * d + j];
    assert_int_equal(sd_coding_rate_gram(gram, d, ld, (double)n, 0.2, &rate, dgram, ld), SD_OK);
    assert_int_equal(sd_coding_rate_f64(z, n, d, d, 0.2, &rows_rate, NULL, 0), SD_OK);
    assert_relative(rate, rows_rate, 1e-12, "rate from the Gram");
    for (size_t i = 0; i < d; i++) {
        for (size_t j = 0; j <= i; j++) {
            double keep = gram[i * ld + j], above, below, step = 1e-5;
            gram[i * ld + j] = gram[j * ld + i] = keep + step;
            assert_int_equal(sd_coding_rate_gram(gram, d, ld, (double)n, 0.2, &above, NULL, 0), SD_OK);
            gram[i * ld + j] = gram[j * ld + i] = keep - step;
            assert_int_equal(sd_coding_rate_gram(gram, d, ld, (double)n, 0.2, &below, NULL, 0), SD_OK);
            gram[i * ld + j] = gram[j * ld + i] = keep;
            /* Both entries moved, so an off-diagonal difference sees dR/dG twice. */
            double expected = (above - below) / (2.0 * step) / (i == j ? 1.0 : 2.0);
            assert_near(dgram[i * ld + j], expected, 1e-8, "dR/dG");
            assert_true(dgram[i * ld + j] == dgram[j * ld + i]);
        }
    }
    /* dR/dZ = 2 Z dR/dG, and the plan gives the same numbers. */
    double *grad = DOUBLES(n * d);
    assert_int_equal(sd_coding_rate_f64(z, n, d, d, 0.2, NULL, grad, d), SD_OK);
    for (size_t r = 0; r < n; r++)
        for (size_t j = 0; j < d; j++) {
            double sum = 0.0;
            for (size_t i = 0; i < d; i++)
                sum += 2.0 * z[r * d + i] * dgram[i * ld + j];
            assert_near(grad[r * d + j], sum, 1e-12, "2 Z dR/dG");
        }
    sd_coding_rate_plan *plan = NULL;
    double again, *dagain = DOUBLES(d * ld);
    /* n_max < d: room for the Gram all the same */
    assert_int_equal(sd_coding_rate_plan_create(NULL, 2, d, &plan), SD_OK);
    assert_int_equal(sd_coding_rate_plan_run_gram(plan, gram, d, ld, (double)n, 0.2, &again, dagain, ld), SD_OK);
    assert_true(again == rate && memcmp(dagain, dgram, d * ld * sizeof(double)) == 0);
    sd_coding_rate_plan_destroy(plan);
    free(z);
    free(gram);
    free(dgram);
    free(dagain);
    free(grad);
}

/* ---- properties ---------------------------------------------------------------------------- */

/* Z -> Z Q by a few plane rotations. */
static void rotate(double *z, size_t n, size_t d) {
    for (size_t pair = 0; pair + 1 < d; pair++) {
        double c = cos(0.7 + (double)pair), s = sin(0.7 + (double)pair);
        for (size_t i = 0; i < n; i++) {
            double a = z[i * d + pair], b = z[i * d + pair + 1];
            z[i * d + pair] = c * a - s * b;
            z[i * d + pair + 1] = s * a + c * b;
        }
    }
}

static void test_invariance(void **state) {
    (void)state;
    const size_t n = 40, d = 24;
    double *z = DOUBLES(n * d), *turned = DOUBLES(n * d), *grad = DOUBLES(n * d), *grad_turned = DOUBLES(n * d), a, b;
    fill(z, n * d, 3);
    memcpy(turned, z, n * d * sizeof(double));
    rotate(turned, n, d);
    assert_int_equal(sd_coding_rate_f64(z, n, d, d, 0.05, &a, grad, d), SD_OK);
    assert_int_equal(sd_coding_rate_f64(turned, n, d, d, 0.05, &b, grad_turned, d), SD_OK);
    assert_relative(a, b, 1e-12, "rate of rotated rows");
    rotate(grad, n, d); /* the gradient turns with its rows */
    for (size_t i = 0; i < n * d; i++)
        assert_near(grad[i], grad_turned[i], 1e-12, "gradient of rotated rows");
    /* The order of rows does not matter. */
    for (size_t j = 0; j < d; j++) {
        double keep = z[j];
        z[j] = z[(n - 1) * d + j];
        z[(n - 1) * d + j] = keep;
    }
    assert_int_equal(sd_coding_rate_f64(z, n, d, d, 0.05, &b, NULL, 0), SD_OK);
    assert_relative(b, a, 1e-12, "rate of exchanged rows");
    free(z);
    free(turned);
    free(grad);
    free(grad_turned);
}

/* log det(I + a Z'Z) = log det(I + a ZZ'): the transposed matrix has the same rate at the same a. */
static void test_both_sides(void **state) {
    (void)state;
    const size_t n = 30, d = 17;
    double *z = DOUBLES(n * d), *t = DOUBLES(n * d), *grad = DOUBLES(n * d), *grad_t = DOUBLES(n * d), a, b;
    fill(z, n * d, 8);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < d; j++)
            t[j * n + i] = z[i * d + j];
    double eps = 0.05, eps_t = eps * ((double)n / (double)d) * ((double)n / (double)d); /* n/(d eps_t) = d/(n eps) */
    assert_int_equal(sd_coding_rate_f64(z, n, d, d, eps, &a, grad, d), SD_OK);
    assert_int_equal(sd_coding_rate_f64(t, d, n, n, eps_t, &b, grad_t, n), SD_OK);
    assert_relative(a, b, 1e-12, "rate of the transposed rows");
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < d; j++)
            assert_near(grad[i * d + j], grad_t[j * n + i], 1e-12, "gradient of the transposed rows");
    free(z);
    free(t);
    free(grad);
    free(grad_t);
}

/* Rows in orthogonal subspaces: the Gram is block-diagonal, so the rates add up. */
static void test_additivity(void **state) {
    (void)state;
    const size_t n = 24, d = 20, half = 10;
    double *z = DOUBLES(n * d), *first = DOUBLES(n * d), *second = DOUBLES(n * d), whole, a, b;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < d; j++)
            if ((i < n / 2) == (j < half)) {
                z[i * d + j] = sin((double)(i * d + j));
                (i < n / 2 ? first : second)[i * d + j] = z[i * d + j];
            }
    assert_int_equal(sd_coding_rate_f64(z, n, d, d, 0.05, &whole, NULL, 0), SD_OK);
    assert_int_equal(sd_coding_rate_f64(first, n, d, d, 0.05, &a, NULL, 0), SD_OK);
    assert_int_equal(sd_coding_rate_f64(second, n, d, d, 0.05, &b, NULL, 0), SD_OK);
    assert_relative(whole, a + b, 1e-13, "sum of orthogonal parts");
    free(z);
    free(first);
    free(second);
}

/* Orthonormal rows: all eigenvalues are known. */
static void test_closed_forms(void **state) {
    (void)state;
    double rate, grad[4];
    const double one[1] = {3.0};
    assert_int_equal(sd_coding_rate_f64(one, 1, 1, 1, 0.5, &rate, grad, 1), SD_OK);
    assert_relative(rate, 0.5 * log(19.0), 1e-15, "n = d = 1");
    assert_relative(grad[0], 2.0 * 3.0 / 19.0, 1e-15, "its gradient");

    const size_t n = 32;
    double *identity = DOUBLES(n * n);
    for (size_t i = 0; i < n; i++)
        identity[i * n + i] = 1.0;
    const double eps[] = {1e-300, 1e-30, 1e-12, 0.05, 1.0, 1e4, 1e7, 1e12, 1e100};
    for (size_t e = 0; e < sizeof(eps) / sizeof(*eps); e++) {
        assert_int_equal(sd_coding_rate_f64(identity, n, n, n, eps[e], &rate, NULL, 0), SD_OK);
        assert_relative(rate, 0.5 * (double)n * log1p(1.0 / eps[e]), 1e-10, "identity");
    }
    const double zero[6] = {0};
    const float zero_float[6] = {0};
    float grad_float[6];
    double grad_zero[6];
    assert_int_equal(sd_coding_rate_f64(zero, 2, 3, 3, 0.05, &rate, grad_zero, 3), SD_OK);
    assert_true(rate == 0.0 && largest(grad_zero, 6) == 0.0);
    assert_int_equal(sd_coding_rate(zero_float, 3, 2, 2, 0.05, &rate, grad_float, 2), SD_OK);
    assert_true(rate == 0.0);
    for (size_t i = 0; i < 6; i++)
        assert_true(grad_float[i] == 0.0f);
    free(identity);
}

/* Features of rank 3 in 48 dimensions at an eps_sq far beyond what a Gram matrix can hold: each nonzero singular value
 * s counts 1/2 log(1 + alpha s^2), the others nothing. The gradient is alpha Z / (1 + alpha s^2), but moving Z by u out
 * of its subspace adds alpha u to it: that is the problem's own condition, for any method, and enters the tolerance.
 * The rate has sqrt(alpha) u |Z|. */
static void test_tiny_eps(void **state) {
    (void)state;
    const size_t n = 96, d = 48;
    double *z = DOUBLES(n * d), *t = DOUBLES(n * d), *grad = DOUBLES(n * d), rate;
    float *f, *grad_float = FLOATS(n * d);
    for (size_t i = 0; i < n; i++)
        z[i * d + (i % 3)] = 0.5; /* three orthogonal rows, each n/3 times */
    rotate(z, n, d);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < d; j++)
            t[j * n + i] = z[i * d + j];
    const double eps[] = {1e-4, 1e-6, 1e-8, 1e-10, 1e-12, 1e-16, 1e-18};
    for (size_t e = 0; e < sizeof(eps) / sizeof(*eps); e++) {
        double alpha = (double)d / ((double)n * eps[e]), square = 0.25 * (double)n / 3.0;
        double expected = 1.5 * log1p(alpha * square), slack = 1e-10 * 0.13 + 1e-15 * alpha;
        double eps_t = eps[e] * ((double)n / (double)d) * ((double)n / (double)d);
        double rate_slack = 1e-10 * expected + 1e-15 * sqrt(alpha * square);

        assert_int_equal(sd_coding_rate_f64(z, n, d, d, eps[e], &rate, grad, d), SD_OK);
        assert_near(rate, expected, rate_slack, "rank 3");
        for (size_t i = 0; i < n * d; i++)
            assert_near(grad[i], alpha * z[i] / (1.0 + alpha * square), slack, "gradient of rank 3");
        assert_int_equal(sd_coding_rate_f64(t, d, n, n, eps_t, &rate, grad, n), SD_OK);
        assert_near(rate, expected, rate_slack, "rank 3, wide");
        for (size_t i = 0; i < n * d; i++)
            assert_near(grad[i], alpha * t[i] / (1.0 + alpha * square), slack, "gradient of rank 3, wide");
    }
    /* The same rows rounded to float have a rate of their own; float and double must agree about it. */
    f = rounded(z, n * d);
    for (size_t i = 0; i < n * d; i++)
        z[i] = (double)f[i];
    for (size_t e = 0; e < sizeof(eps) / sizeof(*eps); e++) {
        double expected;
        assert_int_equal(sd_coding_rate_f64(z, n, d, d, eps[e], &expected, grad, d), SD_OK);
        assert_int_equal(sd_coding_rate(f, n, d, d, eps[e], &rate, grad_float, d), SD_OK);
        assert_relative(rate, expected, 1e-5, "rank 3, float");
        for (size_t i = 0; i < n * d; i++)
            assert_near((double)grad_float[i], grad[i], 1e-5 * largest(grad, d), "gradient of rank 3, float");
    }
    /* Repeated float rows are exactly of rank 1, so every eps_sq has a known value. */
    for (size_t i = 0; i < n * d; i++)
        f[i] = i % d < 16 ? 0.25f : 0.0f;
    for (double eps_sq = 1.0; eps_sq > 1e-60; eps_sq *= 1e-4) {
        double expected = 0.5 * log1p((double)d / eps_sq);
        grad_float[0] = 9.0f;
        sd_status status = sd_coding_rate(f, n, d, d, eps_sq, &rate, grad_float, d);
        if (status == SD_ERR_NUMERIC) { /* beyond all reason: rounding error times alpha leaves the range of float */
            assert_true(eps_sq < 1e-36 && grad_float[0] == 9.0f);
            continue;
        }
        assert_int_equal(status, SD_OK);
        if (eps_sq > 1e-20)
            assert_relative(rate, expected, 1e-5, "rank 1, float");
        for (size_t i = 0; i < n * d; i++)
            assert_true(isfinite(grad_float[i]));
        assert_true(isfinite(rate));
    }
    free(z);
    free(t);
    free(f);
    free(grad);
    free(grad_float);
}

/* Rows of wildly different size, where a float Gram would overflow or vanish. */
static void test_scales(void **state) {
    (void)state;
    const size_t n = 20, d = 12;
    double *z = DOUBLES(n * d), expected, rate;
    fill(z, n * d, 21);
    normalize(z, n, d);
    const double scales[] = {1e-30, 1e-22, 1e-15, 1e15, 1e25, 1e35};
    for (size_t s = 0; s < sizeof(scales) / sizeof(*scales); s++) {
        float *f = FLOATS(n * d), *grad = FLOATS(n * d);
        double *wide, *grad_wide = DOUBLES(n * d), eps = 0.05 * scales[s] * scales[s];
        for (size_t i = 0; i < n * d; i++)
            f[i] = (float)(z[i] * scales[s]);
        wide = widened(f, n * d);
        assert_int_equal(sd_coding_rate_f64(wide, n, d, d, eps, &expected, grad_wide, d), SD_OK);
        assert_int_equal(sd_coding_rate(f, n, d, d, eps, &rate, grad, d), SD_OK);
        assert_relative(rate, expected, 1e-5, "rate of scaled rows");
        for (size_t i = 0; i < n * d; i++)
            assert_near((double)grad[i], grad_wide[i], 1e-5 * largest(grad_wide, n * d), "gradient of scaled rows");
        assert_int_equal(sd_coding_rate(f, n, d, d, 0.05, &rate, NULL, 0), SD_OK);
        assert_int_equal(sd_coding_rate_f64(wide, n, d, d, 0.05, &expected, NULL, 0), SD_OK);
        assert_relative(rate, expected, 1e-5, "rate at eps_sq 0.05");
        free(f);
        free(grad);
        free(wide);
        free(grad_wide);
    }
    free(z);
}

/* From spread features to collapsed ones, on both sides: the float form keeps its promise where the Gram loses it. */
static void test_float_accuracy(void **state) {
    (void)state;
    const size_t sizes[][2] = {{128, 64}, {64, 128}, {96, 96}, {600, 48}};
    const double noise[] = {1.0, 0.3, 0.1, 0.01, 1e-3, 1e-5};
    const double eps[] = {5.0, 0.5, 0.05, 1e-3, 1e-5};
    for (size_t s = 0; s < 4; s++) {
        size_t n = sizes[s][0], d = sizes[s][1];
        double *z = DOUBLES(n * d), *base = DOUBLES(d), *grad = DOUBLES(n * d);
        for (size_t c = 0; c < 6; c++) {
            fill(z, n * d, 40 + c);
            fill(base, d, 99);
            for (size_t i = 0; i < n * d; i++)
                z[i] = base[i % d] * (noise[c] < 1.0 ? 1.0 : 0.0) + noise[c] * z[i];
            normalize(z, n, d);
            float *f = rounded(z, n * d), *grad_float = FLOATS(n * d);
            double *exact = widened(f, n * d);
            for (size_t e = 0; e < 5; e++) {
                double expected, rate, error = 0.0, norm = 0.0;
                assert_int_equal(sd_coding_rate_f64(exact, n, d, d, eps[e], &expected, grad, d), SD_OK);
                assert_int_equal(sd_coding_rate(f, n, d, d, eps[e], &rate, grad_float, d), SD_OK);
                for (size_t i = 0; i < n * d; i++) {
                    double off = (double)grad_float[i] - grad[i];
                    error += off * off;
                    norm += grad[i] * grad[i];
                }
                if (!(fabs(rate - expected) <= 1e-5 * expected) || !(sqrt(error / norm) <= 1e-5))
                    fail_msg("n %zu, d %zu, noise %g, eps %g: rate off by %.3g, gradient by %.3g", n, d, noise[c],
                             eps[e], fabs(rate - expected) / expected, sqrt(error / norm));
                double alone;
                assert_int_equal(sd_coding_rate(f, n, d, d, eps[e], &alone, NULL, 0), SD_OK);
                assert_relative(alone, expected, 1e-5, "rate without gradient");
            }
            free(f);
            free(grad_float);
            free(exact);
        }
        free(z);
        free(base);
        free(grad);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_golden_multiview),
        cmocka_unit_test(test_finite_differences),
        cmocka_unit_test(test_gram_finite_differences),
        cmocka_unit_test(test_invariance),
        cmocka_unit_test(test_both_sides),
        cmocka_unit_test(test_additivity),
        cmocka_unit_test(test_closed_forms),
        cmocka_unit_test(test_tiny_eps),
        cmocka_unit_test(test_scales),
        cmocka_unit_test(test_float_accuracy),
    };
    return cmocka_run_group_tests_name("coding rate", tests, NULL, NULL);
}
