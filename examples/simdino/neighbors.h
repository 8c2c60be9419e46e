/* neighbors.h - a picture of test images and their nearest training images. */
#ifndef NEIGHBORS_H
#define NEIGHBORS_H

#include "feature_rows.h"
#include "sources.h"

/* For some test images, the first ones of each class in turn (not chosen by success), a row of the picture: the image,
 * then its nearest training images, best first, framed green where the label is that of the test image, else red.
 * Rows of `base` and `queries` are of length 1. 0, or -1 with the reason reported. */
int neighbors_write(sd_context *context, const char *path, const char *title, const source *data, const features *base,
                    const features *queries);

#endif
