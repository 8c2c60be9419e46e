/* simdino coding-rate: the coding rate of the rows of a matrix, or of embeddings. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "network.h"
#include "npy.h"
#include "options.h"
#include "program.h"

typedef struct rate_settings {
    network_options net;
    const char *file, *data;
    double eps;
    bool normalize;
    int32_t split;
    uint64_t limit;
} rate_settings;

/* Adds the outer products of `count` rows, at most 8, to the upper triangle of the d x d matrix `gram`, which passes
 * through the cache once for all of them. */
static void add_outer_products(const double *rows, size_t count, size_t d, double *gram) {
    for (size_t i = 0; i < d; i++) {
        double f[8];
        const double *row[8];
        for (size_t r = 0; r < 8; r++) {
            row[r] = r < count ? rows + r * d : rows;
            f[r] = r < count ? rows[r * d + i] : 0;
        }
        for (size_t j = i; j < d; j++) {
            gram[i * d + j] += f[0] * row[0][j] + f[1] * row[1][j] + f[2] * row[2][j] + f[3] * row[3][j] +
                               f[4] * row[4][j] + f[5] * row[5][j] + f[6] * row[6][j] + f[7] * row[7][j];
        }
    }
}

static double value_at(const npy_matrix *z, size_t index) {
    return z->floats != NULL ? (double)z->floats[index] : z->doubles[index];
}

/* (tr G)^2 / tr(G^2) with G = Z'Z: how many directions the rows spread over, counted softly. ZZ' has the same
 * eigenvalues but for zeros: the smaller of the two is formed. Negative when memory is short. */
static double effective_rank(const npy_matrix *z) {
    size_t n = z->rows, d = z->columns, side = n < d ? n : d, length = n < d ? d : n;
    double *gram = calloc(side * side, sizeof *gram), *block = malloc(8 * side * sizeof *block);
    double result = -1;
    if (gram != NULL && block != NULL) {
        for (size_t first = 0; first < length; first += 8) {
            size_t count = length - first < 8 ? length - first : 8;
            for (size_t r = 0; r < count; r++) {
                for (size_t i = 0; i < side; i++) {
                    block[r * side + i] = value_at(z, n < d ? i * d + first + r : (first + r) * d + i);
                }
            }
            add_outer_products(block, count, side, gram);
        }
        double trace = 0, squares = 0;
        for (size_t i = 0; i < side; i++) {
            trace += gram[i * side + i];
            squares += gram[i * side + i] * gram[i * side + i];
            for (size_t j = i + 1; j < side; j++) {
                squares += 2 * gram[i * side + j] * gram[i * side + j];
            }
        }
        result = squares > 0 ? trace * trace / squares : 0;
    }
    free(gram);
    free(block);
    return result;
}

static int normalize_rows(npy_matrix *z) {
    if (z->floats != NULL) {
        sd_status status = sd_normalize_rows(z->floats, z->rows, z->columns, z->columns, NULL);
        return status == SD_OK ? EXIT_OK : failed("cannot normalise", status);
    }
    for (size_t i = 0; i < z->rows; i++) {
        double *row = z->doubles + i * z->columns, sum = 0;
        for (size_t j = 0; j < z->columns; j++) {
            sum += row[j] * row[j];
        }
        for (size_t j = 0; j < z->columns && sum > 0; j++) {
            row[j] /= sqrt(sum);
        }
    }
    return EXIT_OK;
}

static int print_rate(npy_matrix *z, const rate_settings *s) {
    if (s->normalize && normalize_rows(z) != EXIT_OK) {
        return EXIT_FAILED;
    }
    double rate = 0;
    sd_status status = z->floats != NULL
                           ? sd_coding_rate(z->floats, z->rows, z->columns, z->columns, s->eps, &rate, NULL, 0)
                           : sd_coding_rate_f64(z->doubles, z->rows, z->columns, z->columns, s->eps, &rate, NULL, 0);
    if (status != SD_OK) {
        return failed("cannot compute the coding rate", status);
    }
    double rank = effective_rank(z);
    printf("rows            %zu\ncolumns         %zu\neps             %g\n", z->rows, z->columns, s->eps);
    printf("R               %.9g nats\n", rate);
    printf("gamma R         %.9g\n", rate * sd_coding_rate_gamma(z->rows, z->columns));
    if (rank >= 0) {
        printf("effective rank  %.4f of at most %zu\n", rank, z->rows < z->columns ? z->rows : z->columns);
    }
    return EXIT_OK;
}

static int rate_of_embeddings(const rate_settings *s, sd_context *context) {
    network net = {0};
    source data = {0};
    features rows = {0};
    int result = network_open(context, &s->net, &net);
    if (result != EXIT_OK) {
        return result;
    }
    result = EXIT_FAILED;
    if (source_open(context, s->data, NULL, &data) == 0) {
        source_set_channels(&data, net.shape.channels);
        const sd_dataset *images = s->split == 0 ? data.train : data.test;
        if (images == NULL) {
            complain("%s brings no test images", s->data);
        } else if (network_features(context, &net, &s->net, images, s->limit, "embed", &rows) == 0) {
            npy_matrix z = {.rows = (size_t)rows.count, .columns = rows.dim, .floats = rows.rows};
            result = print_rate(&z, s);
        }
    }
    features_free(&rows);
    source_close(&data);
    network_close(&net);
    return result;
}

static int rate_of_file(const rate_settings *s) {
    npy_matrix z;
    if (npy_read(s->file, &z) != 0) {
        return EXIT_FAILED;
    }
    int result = print_rate(&z, s);
    npy_free(&z);
    return result;
}

int command_coding_rate(int argc, char **argv) {
    static const char *const splits[] = {"train", "test", NULL};
    rate_settings s = {.net = NETWORK_OPTIONS_DEFAULT, .eps = 0.05};
    option options[] = {
        {.kind = OPTION_REAL,
         .name = "eps",
         .value = "X",
         .target = &s.eps,
         .least = 1e-300,
         .most = 1e300,
         .help = "the paper's epsilon squared (default: 0.05)"},
        {.kind = OPTION_FLAG,
         .name = "normalize",
         .target = &s.normalize,
         .help = "divide each row by its length first"},
        {.kind = OPTION_HEADING, .name = "Embeddings instead of a file"},
        WEIGHTS_OPTION(s.net),
        {.kind = OPTION_TEXT, .name = "data", .value = "PATH", .target = &s.data, .help = SOURCE_PATH_HELP},
        {.kind = OPTION_CHOICE,
         .name = "split",
         .value = "NAME",
         .target = &s.split,
         .choices = splits,
         .help = "train (default) or test images"},
        {.kind = OPTION_COUNT,
         .name = "limit",
         .value = "N",
         .target = &s.limit,
         .least = 0,
         .most = 1e15,
         .help = "only the first N images (default: 0, all)"},
        ON_ERROR_OPTION,
        NETWORK_CHOICE_OPTIONS(s.net),
        HEAD_OPTION(s.net),
        FEATURES_OPTIONS(s.net),
        PREPARE_OPTIONS(s.net),
        THREADS_OPTION(s.net.threads),
    };
    option_set set = {
        .command = "coding-rate",
        .synopsis = "FILE.npy [options]\n       simdino coding-rate --weights FILE --data PATH [options]",
        .about = "Prints the coding rate R = 1/2 log det(I + d/(n eps) Z'Z) of the n rows of a matrix, gamma R with\n"
                 "gamma = (d + n)/(d n), and the effective rank (tr G)^2 / tr(G^2) of G = Z'Z.",
        .options = options,
        .count = sizeof options / sizeof options[0],
        .positional_name = "file",
        .positional = &s.file,
    };
    options_outcome outcome = options_parse(&set, argc, argv);
    if (outcome != OPTIONS_GO) {
        return outcome == OPTIONS_HELP ? EXIT_OK : EXIT_WRONG_USAGE;
    }
    options_apply(&set);
    if ((s.file != NULL) == (s.net.weights != NULL || s.data != NULL)) {
        return options_wrong(&set, "name either a .npy file, or --weights and --data");
    }
    if (s.file != NULL) {
        return rate_of_file(&s);
    }
    if (s.net.weights == NULL || s.data == NULL) {
        return options_wrong(&set, "--%s is missing", s.net.weights == NULL ? "weights" : "data");
    }
    catch_interrupts();
    sd_context *context = open_context(s.net.threads);
    int result = context != NULL ? rate_of_embeddings(&s, context) : EXIT_FAILED;
    sd_context_destroy(context);
    return interrupted() ? EXIT_INTERRUPTED : result;
}
