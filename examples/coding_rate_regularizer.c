/* The coding rate alone, as the regulariser of somebody else's model: a two-layer network, written out by hand, is
 * taught to give two noisy copies of a sample the same feature. Without a regulariser it can cheat: all samples
 * get one and the same feature. Maximising the coding rate of the features forbids it. Both are trained and compared.
 *
 *     cc coding_rate_regularizer.c $(pkg-config --cflags --libs simdino) -lm
 */
#include <math.h>
#include <simdino/simdino.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 128, INPUT = 16, HIDDEN = 32, OUTPUT = 8, STEPS = 300 };

/* z = normalised (W2 tanh(W1 x)); the hidden and unnormalised values are kept for the way back. */
typedef union network {
    struct {
        float w1[HIDDEN][INPUT], w2[OUTPUT][HIDDEN];
    };
    float all[HIDDEN * INPUT + OUTPUT * HIDDEN]; /* the same weights as one array */
} network;
typedef struct pass {
    float x[N][INPUT], hidden[N][HIDDEN], z[N][OUTPUT], length[N];
} pass;

static void forward(const network *net, pass *p) {
    for (int i = 0; i < N; i++) {
        float squares = 0;
        for (int h = 0; h < HIDDEN; h++) {
            float sum = 0;
            for (int k = 0; k < INPUT; k++) {
                sum += net->w1[h][k] * p->x[i][k];
            }
            p->hidden[i][h] = tanhf(sum);
        }
        for (int o = 0; o < OUTPUT; o++) {
            p->z[i][o] = 0;
            for (int h = 0; h < HIDDEN; h++) {
                p->z[i][o] += net->w2[o][h] * p->hidden[i][h];
            }
            squares += p->z[i][o] * p->z[i][o];
        }
        p->length[i] = sqrtf(squares) + 1e-8f;
        for (int o = 0; o < OUTPUT; o++) {
            p->z[i][o] /= p->length[i];
        }
    }
}

/* Adds the gradient by the weights, given the gradient by z. */
static void backward(const network *net, const pass *p, float (*dz)[OUTPUT], network *gradient) {
    for (int i = 0; i < N; i++) {
        float along = 0, dhidden[HIDDEN] = {0};
        for (int o = 0; o < OUTPUT; o++) {
            along += dz[i][o] * p->z[i][o];
        }
        for (int o = 0; o < OUTPUT; o++) {
            float dy = (dz[i][o] - along * p->z[i][o]) / p->length[i]; /* through the division by the length */
            for (int h = 0; h < HIDDEN; h++) {
                gradient->w2[o][h] += dy * p->hidden[i][h];
                dhidden[h] += dy * net->w2[o][h];
            }
        }
        for (int h = 0; h < HIDDEN; h++) {
            float da = dhidden[h] * (1 - p->hidden[i][h] * p->hidden[i][h]);
            for (int k = 0; k < INPUT; k++) {
                gradient->w1[h][k] += da * p->x[i][k];
            }
        }
    }
}

/* Trains with loss = -mean cosine of the two copies - weight * R(z of the first copy). Tells the final coding rate. */
static double train(double weight) {
    static network net, gradient;
    static pass a, b;
    static float data[N][INPUT], da[N][OUTPUT], db[N][OUTPUT], rate_gradient[N][OUTPUT];
    sd_random random;
    sd_random_init(&random, 7, 0, 0);
    const size_t count = sizeof net.all / sizeof net.all[0];
    for (size_t i = 0; i < count; i++) {
        net.all[i] = (float)(0.3 * sd_random_normal(&random));
    }
    for (int i = 0; i < N * INPUT; i++) {
        data[i / INPUT][i % INPUT] = (float)sd_random_normal(&random);
    }
    double rate = 0, similarity = 0;
    for (int step = 0; step < STEPS; step++) {
        for (int i = 0; i < N * INPUT; i++) { /* two noisy copies */
            a.x[i / INPUT][i % INPUT] = data[i / INPUT][i % INPUT] + (float)(0.3 * sd_random_normal(&random));
            b.x[i / INPUT][i % INPUT] = data[i / INPUT][i % INPUT] + (float)(0.3 * sd_random_normal(&random));
        }
        forward(&net, &a);
        forward(&net, &b);

        /* The one call to the library: the rate of N rows of OUTPUT numbers, and its gradient by each of them. */
        sd_status status = sd_coding_rate(&a.z[0][0], N, OUTPUT, OUTPUT, 0.05, &rate, &rate_gradient[0][0], OUTPUT);
        if (status != SD_OK) {
            fprintf(stderr, "coding rate: %s\n", sd_last_error());
            exit(1);
        }
        similarity = 0;
        for (int i = 0; i < N; i++) {
            for (int o = 0; o < OUTPUT; o++) {
                similarity += (double)(a.z[i][o] * b.z[i][o]) / N;
                da[i][o] = -b.z[i][o] / N - (float)weight * rate_gradient[i][o]; /* maximise R: minus its gradient */
                db[i][o] = -a.z[i][o] / N;
            }
        }
        memset(&gradient, 0, sizeof gradient);
        backward(&net, &a, da, &gradient);
        backward(&net, &b, db, &gradient);
        for (size_t i = 0; i < count; i++) {
            net.all[i] -= 0.5f * gradient.all[i];
        }
    }
    printf("weight %.2f: cosine of the copies %.3f, coding rate %.3f (at most %.3f)\n", weight, similarity, rate,
           0.5 * OUTPUT * log(1 + 1 / 0.05)); /* unit rows that spread evenly: Z'Z = n/d I */
    return rate;
}

int main(void) {
    double without = train(0), with = train(0.1);
    return with > without ? 0 : 1; /* so that this example is a test as well */
}
