/* npy.h - NumPy's .npy files (format 1.0) and .npz archives, as far as embeddings need them. */
#ifndef NPY_H
#define NPY_H

#include <stddef.h>
#include <stdint.h>

/* One array of an archive. */
typedef struct npy_array {
    const char *name; /* "embeddings" */
    const char *type; /* as NumPy writes it: "<f4", "<i4", "|S12" */
    size_t item;      /* bytes of a number */
    size_t rows, columns; /* columns 0: one dimension */
    const void *data;
} npy_array;

/* Writes the first array as .npy, or, when `path` ends so, all of them as .npz. 0, or -1 with the reason reported. */
int npy_write(const char *path, const npy_array *arrays, size_t count);

typedef struct npy_matrix {
    size_t rows, columns;
    float *floats; /* one of the two is not NULL */
    double *doubles;
} npy_matrix;

/* Reads a .npy file of one or two dimensions of little-endian float or double. 0, or -1 with the reason reported. */
int npy_read(const char *path, npy_matrix *matrix);
void npy_free(npy_matrix *matrix);

#endif
