/* A pretrainer's configuration as text, setting by setting: "model.dim" is "384", "lr" is "0.0005 (3f40624dd2f1a9fc)".
 * Of numbers with a fraction the readable part is for people; the bits in parentheses count, so that nothing is rounded
 * and no locale matters. */
#ifndef SD_TRAIN_CONFIG_TEXT_H
#define SD_TRAIN_CONFIG_TEXT_H

#include "base/base.h"
#include <simdino/train.h>

/* Room for the text of any setting. */
#define SD_SETTING_MAX ((size_t)1024)

/* Bytes of the setting in the struct, and where they begin. */
size_t sd_setting_bytes(size_t index, size_t *offset);
typedef enum sd_setting_type { SD_SETTING_I32, SD_SETTING_U64, SD_SETTING_SIZE, SD_SETTING_F64 } sd_setting_type;
/* Its type, and how many numbers it has. */
sd_setting_type sd_setting_type_of(size_t index, size_t *count);

/* A late setting came after the first checkpoints were written: where it has its default, files do not mention it. */
bool sd_setting_is_late(size_t index);
bool sd_setting_is_default(const sd_pretrainer_config *config, size_t index);

/* text: SD_SETTING_MAX bytes. */
void sd_setting_print(const sd_pretrainer_config *config, size_t index, char *text);
/* False when the text is not of the form that sd_setting_print gives. */
bool sd_setting_parse(sd_pretrainer_config *config, size_t index, const char *text);

#endif
