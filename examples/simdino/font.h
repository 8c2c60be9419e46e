/* font.h - a bitmap font of 5 x 7 dots with two rows below the base line, for the characters from space to tilde. */
#ifndef FONT_H
#define FONT_H

/* Up to 9 rows of up to 5 characters, '#' where there is a dot; rows after a NULL are empty. NULL: nothing to draw. */
const char *const *font_glyph(char character);

#endif
