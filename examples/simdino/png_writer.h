/* png_writer.h - PNG files of 8-bit red-green-blue pictures. */
#ifndef PNG_WRITER_H
#define PNG_WRITER_H

#include <stdint.h>

/* Writes height rows of width pixels. 0, or -1 with the reason reported. */
int png_write(const char *path, const uint8_t *pixels, int width, int height);

#endif
