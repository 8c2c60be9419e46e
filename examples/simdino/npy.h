/* npy.h - NumPy's .npy files (format 1.0) and .npz archives, as far as embeddings need them. */
#ifndef NPY_H
#define NPY_H

#include <stddef.h>
#include <stdint.h>

/* Writes rows x columns floats as .npy, or, when `path` ends so, as .npz with the arrays "embeddings" and, unless
 * labels is NULL, "labels". 0, or -1 with the reason reported. */
int npy_write(const char *path, const float *values, size_t rows, size_t columns, const int32_t *labels);

typedef struct npy_matrix {
    size_t rows, columns;
    float *floats; /* one of the two is not NULL */
    double *doubles;
} npy_matrix;

/* Reads a .npy file of one or two dimensions of little-endian float or double. 0, or -1 with the reason reported. */
int npy_read(const char *path, npy_matrix *matrix);
void npy_free(npy_matrix *matrix);

#endif
