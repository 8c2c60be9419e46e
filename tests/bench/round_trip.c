/* How long two threads take to answer each other. Cores that share a cache do it in less than 100 ns, others in several
 * hundred; on a virtual machine that can change from minute to minute, and with it everything that threads share. */
#include "bench.h"

#include <pthread.h>
#include <stdatomic.h>

#define ROUNDS 2000
#define REPEATS 21

typedef struct talk {
    _Alignas(128) atomic_int word; /* odd: the other's turn */
} talk;

static void *answer(void *argument) {
    talk *t = argument;
    for (int i = 0; i < ROUNDS * REPEATS; i++) {
        while (atomic_load_explicit(&t->word, memory_order_acquire) != 2 * i + 1)
            ;
        atomic_store_explicit(&t->word, 2 * i + 2, memory_order_release);
    }
    return NULL;
}

double round_trip_ns(void) {
    talk t = {0};
    pthread_t other;
    double times[REPEATS];
    if (pthread_create(&other, NULL, answer, &t) != 0)
        return 0.0;
    for (int r = 0, i = 0; r < REPEATS; r++) {
        double begin = now();
        for (int k = 0; k < ROUNDS; k++, i++) {
            atomic_store_explicit(&t.word, 2 * i + 1, memory_order_release);
            while (atomic_load_explicit(&t.word, memory_order_acquire) != 2 * i + 2)
                ;
        }
        times[r] = (now() - begin) / ROUNDS;
    }
    pthread_join(other, NULL);
    return 1e9 * median(times, REPEATS);
}
