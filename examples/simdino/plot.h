/* plot.h - the loss curve as a picture. */
#ifndef PLOT_H
#define PLOT_H

#include "metrics.h"

/* Two diagrams over the steps: the loss above; below compression and expansion, or, of DINO and DINOv2, cross-entropy of
 * class tokens and entropy of the mean target; and k-NN accuracy where measured. Each value is drawn thin, the mean over
 * neighbouring steps thick. 0, or -1 with the reason reported. */
int plot_write(const char *path, const char *title, const metrics_row *rows, size_t count);

#endif
