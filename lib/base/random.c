/* Philox 4x32-10: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. */
#include "base/base.h"

#include <math.h>

static void philox_block(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        uint32_t n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c0 = n0;
        c1 = (uint32_t)p1;
        c2 = n2;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

SD_API void sd_random_init(sd_random *random, uint64_t seed, uint64_t a, uint32_t b) {
    random->key[0] = (uint32_t)seed;
    random->key[1] = (uint32_t)(seed >> 32);
    random->counter[0] = 0; /* the only word that counts: 2^32 blocks a stream */
    random->counter[1] = b;
    random->counter[2] = (uint32_t)a;
    random->counter[3] = (uint32_t)(a >> 32);
    random->left = 0;
    random->reserved = 0;
    for (int i = 0; i < 4; i++)
        random->buffer[i] = 0;
}

SD_API uint32_t sd_random_u32(sd_random *random) {
    if (random->left == 0) {
        philox_block(random->counter, random->key, random->buffer);
        random->counter[0]++;
        random->left = 4;
    }
    return random->buffer[4 - random->left--];
}

SD_API double sd_random_uniform(sd_random *random) {
    uint64_t high = sd_random_u32(random);
    uint64_t low = sd_random_u32(random);
    return (double)((high << 32 | low) >> 11) * 0x1p-53;
}

SD_API uint64_t sd_random_below(sd_random *random, uint64_t n) {
    if (n == 0)
        return 0;
    uint64_t excess = (0 - n) % n; /* 2^64 mod n: values below it would favour small results */
    for (;;) {
        uint64_t high = sd_random_u32(random);
        uint64_t value = high << 32 | sd_random_u32(random);
        if (value >= excess)
            return value % n;
    }
}

SD_API double sd_random_normal(sd_random *random) {
    double radius = sqrt(-2.0 * log(1.0 - sd_random_uniform(random)));
    return radius * cos(6.283185307179586477 * sd_random_uniform(random));
}
