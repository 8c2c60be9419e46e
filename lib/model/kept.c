/* What a pass keeps for products alone, and the hidden numbers of the MLP. Products may round their factors to bfloat16: then what
 * is kept is rounded beforehand, and takes half of the memory. It is computed as floats all the same, in memory of the thread;
 * else where it is kept. */
#include "model/model.h"

void *sd_kept_at(const sd_activations *a, void *kept, size_t index) {
    return (char *)kept + index * (a->keeps_bf16 ? sizeof(uint16_t) : sizeof(float));
}

float *sd_kept_floats(const sd_activations *a, void *kept, float *work) { return a->keeps_bf16 ? work : kept; }

void sd_keep(const sd_activations *a, const float *x, size_t count, void *kept) {
    if (a->keeps_bf16)
        sd_bf16_round(a->gemms, x, count, kept);
}

void sd_keep_rows(const sd_activations *a, const float *x, size_t rows, float *kept) {
    const size_t d = a->geometry.dim;
    for (size_t r = 0; a->keeps_bf16 && r < rows; r++)
        sd_bf16_round(a->gemms, x + r * d, d, (uint16_t *)(kept + r * d));
}

void sd_recall(const sd_activations *a, const void *kept, size_t count, float *x) {
    if (a->keeps_bf16)
        sd_bf16_widen(a->gemms, kept, count, x);
}
