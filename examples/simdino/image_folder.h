/* image_folder.h - folders of image files as data sets. */
#ifndef IMAGE_FOLDER_H
#define IMAGE_FOLDER_H

#include <simdino/simdino.h>
#include <stdbool.h>

/* Files of images in a folder and all folders in it, sorted by path. Where all of them lie in subfolders, the name of
 * the subfolder is the class. */
typedef struct image_folder image_folder;

/* What happens with a file that cannot be read: it is named and counted, and ... */
enum { ON_ERROR_SKIP, ON_ERROR_STOP }; /* left out | the run stops */

/* What --on-error says, for all folders of the program. */
extern int32_t image_on_error;
extern const char *const image_on_error_words[];
#define ON_ERROR_OPTION                                                                                                \
    {                                                                                                                  \
        .kind = OPTION_CHOICE, .name = "on-error", .value = "WHAT", .target = &image_on_error,                         \
        .choices = image_on_error_words,                                                                               \
        .help = "images that cannot be read: skip (default: they are named, counted and left out) or stop"             \
    }

/* Looks for files; nothing is decoded. 0 with *folder NULL when there are none; -1 with the reason reported. */
int image_folder_open(const char *path, image_folder **folder);
/* The files of a list, in its order; folders in it stand for all of their images. No classes. -1 also when there are
 * none. */
int image_folder_from_list(const char *const *paths, size_t count, image_folder **folder);
void image_folder_close(image_folder *folder);

uint64_t image_folder_count(const image_folder *folder);
/* The path of a file, and the same without the folder's own. */
const char *image_folder_path(const image_folder *folder, uint64_t index);
const char *image_folder_name(const image_folder *folder, uint64_t index);
/* Class names, sorted; 0 of them when there are no classes. */
size_t image_folder_class_count(const image_folder *folder);
const char *image_folder_class(const image_folder *folder, size_t number);
/* Gives the classes other numbers, for data sets made from now on: class i becomes numbers[i]. 0 or -1. */
int image_folder_renumber(image_folder *folder, const int32_t *numbers);

/* The channels that all images are brought to, 1 or 3. In the beginning 1 when all of some files that were looked into
 * are grey, else 3. */
int32_t image_folder_channels(const image_folder *folder);
void image_folder_set_channels(image_folder *folder, int32_t channels);

/* The data set, which decodes on demand and borrows the folder. An image that cannot be read gives the pixels of the next
 * one that can: whoever must not have them asks image_folder_broken() afterwards. NULL with the reason reported. */
sd_dataset *image_folder_dataset(sd_context *context, image_folder *folder);
bool image_folder_broken(const image_folder *folder, uint64_t index);
uint64_t image_folder_broken_count(const image_folder *folder);

/* Reports why an image of any data set could not be had; of a folder, whose files are named when they fail, only what is
 * not known yet. Returns -1. */
int images_failed(const sd_dataset *dataset, const char *what, sd_status status);

/* The folder that a data set was made from; NULL for other data sets. */
image_folder *image_folder_of(const sd_dataset *dataset);

#endif
