/* Folders of images. See image_folder.h. */
#define _XOPEN_SOURCE 700
#include "image_folder.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "image_file.h"
#include "program.h"

#define DEEPEST    32
#define MOST_LONG  256 /* times as long as wide: made larger, a line of pixels would fill the memory */
#define LOOK_INTO  64 /* files whose headers are read to learn of colours */
#define PATH_ROOM  4096

struct image_folder {
    char **paths;
    size_t count, room;
    size_t root_length; /* of the folder's own path, with the slash */
    char **classes;
    size_t class_count;
    int32_t *labels;  /* NULL without classes */
    int32_t *numbers; /* of the classes; NULL: their places */
    int32_t channels;
    sd_dataset *dataset;
    pthread_mutex_t lock;
    bool *broken;
    uint64_t broken_count;
    bool reported; /* that the run stops */
    image_folder *next;
};

int32_t image_on_error = ON_ERROR_SKIP;
const char *const image_on_error_words[] = {"skip", "stop", NULL};

/* All that are open, to find the one of a data set. Opened and closed by one thread. */
static image_folder *open_folders;

/* ---- looking for files --------------------------------------------------------------------- */

static int no_memory(void) {
    complain("out of memory");
    return -1;
}

static int add_path(image_folder *folder, const char *path) {
    if (folder->count == folder->room) {
        size_t room = folder->room > 0 ? 2 * folder->room : 256;
        char **paths = realloc(folder->paths, room * sizeof *paths);
        if (paths == NULL) {
            return no_memory();
        }
        folder->paths = paths;
        folder->room = room;
    }
    char *copy = malloc(strlen(path) + 1);
    if (copy == NULL) {
        return no_memory();
    }
    folder->paths[folder->count++] = strcpy(copy, path);
    return 0;
}

/* The folders that one lies in, outermost last: a link back to one of them would never end. */
typedef struct place {
    dev_t device;
    ino_t number;
    const struct place *outer;
    int depth;
} place;

static bool inside_of(const place *inner, const struct stat *about) {
    for (; inner != NULL; inner = inner->outer) {
        if (inner->device == about->st_dev && inner->number == about->st_ino) {
            return true;
        }
    }
    return false;
}

static int walk(image_folder *folder, char *path, size_t length, const place *outer);

/* The entry `name` of folder `here`; its path has `length` characters. */
static int walk_entry(image_folder *folder, char *path, size_t length, const char *name, const place *here) {
    struct stat about;
    bool there = stat(path, &about) == 0;
    if (!there || !S_ISDIR(about.st_mode)) {
        return image_name(name) ? add_path(folder, path) : 0; /* a link that leads nowhere is a broken image */
    }
    if (inside_of(here, &about)) {
        complain("warning: %s leads back to a folder that it lies in: not followed", path);
        return 0;
    }
    if (here->depth == DEEPEST) {
        complain("%s: more than %d folders in each other", path, DEEPEST);
        return -1;
    }
    return walk(folder, path, length, here);
}

/* `path` has room for PATH_ROOM characters and `length` of them. */
static int walk(image_folder *folder, char *path, size_t length, const place *outer) {
    DIR *directory = opendir(path);
    struct stat about;
    if (directory == NULL || stat(path, &about) != 0) {
        complain("cannot open %s: %s", path, strerror(errno));
        if (directory != NULL) {
            closedir(directory);
        }
        return -1;
    }
    const place here = {about.st_dev, about.st_ino, outer, outer != NULL ? outer->depth + 1 : 0};
    int result = 0;
    while (result == 0) {
        errno = 0;
        const struct dirent *entry = readdir(directory);
        if (entry == NULL) {
            if (errno != 0) {
                complain("cannot read %s: %s", path, strerror(errno));
                result = -1;
            }
            break;
        }
        if (entry->d_name[0] == '.') {
            continue; /* hidden, or the folder itself */
        }
        const char *slash = path[length - 1] == '/' ? "" : "/";
        int added = snprintf(path + length, PATH_ROOM - length, "%s%s", slash, entry->d_name);
        if ((size_t)added >= PATH_ROOM - length) {
            path[length] = '\0';
            complain("warning: %s: a name in it is too long", path);
        } else {
            result = walk_entry(folder, path, length + (size_t)added, entry->d_name, &here);
        }
        path[length] = '\0';
    }
    closedir(directory);
    return result;
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Images of a folder, sorted, behind those that are there. */
static int add_folder(image_folder *folder, const char *root) {
    char path[PATH_ROOM];
    size_t first = folder->count;
    if (strlen(root) >= sizeof path) {
        complain("%s: the name is too long", root);
        return -1;
    }
    strcpy(path, root);
    if (walk(folder, path, strlen(path), NULL) != 0) {
        return -1;
    }
    if (folder->count > first) {
        qsort(folder->paths + first, folder->count - first, sizeof *folder->paths, by_text);
    }
    return 0;
}

/* ---- classes ------------------------------------------------------------------------------- */

const char *image_folder_name(const image_folder *folder, uint64_t index) {
    return folder->paths[index] + folder->root_length;
}

/* Paths are sorted, so that the files of a class follow each other, but "a b/" lies between "a" and "a/": the classes
 * are sorted by themselves. */
static int find_classes(image_folder *folder) {
    for (size_t i = 0; i < folder->count; i++) {
        if (strchr(image_folder_name(folder, i), '/') == NULL) {
            return 0; /* not all images are in subfolders */
        }
    }
    folder->labels = calloc(folder->count, sizeof *folder->labels);
    folder->classes = calloc(folder->count, sizeof *folder->classes);
    if (folder->labels == NULL || folder->classes == NULL) {
        return no_memory();
    }
    for (size_t i = 0; i < folder->count; i++) {
        const char *name = image_folder_name(folder, i);
        size_t length = strcspn(name, "/"), last = folder->class_count;
        if (last > 0 && strlen(folder->classes[last - 1]) == length &&
            strncmp(folder->classes[last - 1], name, length) == 0) {
            continue;
        }
        char *copy = malloc(length + 1);
        if (copy == NULL) {
            return no_memory();
        }
        memcpy(copy, name, length);
        copy[length] = '\0';
        folder->classes[folder->class_count++] = copy;
    }
    qsort(folder->classes, folder->class_count, sizeof *folder->classes, by_text);
    size_t kept = 0;
    for (size_t i = 0; i < folder->class_count; i++) {
        if (kept > 0 && strcmp(folder->classes[kept - 1], folder->classes[i]) == 0) {
            free(folder->classes[i]);
        } else {
            folder->classes[kept++] = folder->classes[i];
        }
    }
    folder->class_count = kept;
    for (size_t i = 0; i < folder->count; i++) {
        const char *name = image_folder_name(folder, i);
        char text[PATH_ROOM], *key = text;
        snprintf(text, sizeof text, "%.*s", (int)strcspn(name, "/"), name);
        char **found = bsearch(&key, folder->classes, folder->class_count, sizeof *folder->classes, by_text);
        folder->labels[i] = found != NULL ? (int32_t)(found - folder->classes) : 0;
    }
    return 0;
}

int image_folder_renumber(image_folder *folder, const int32_t *numbers) {
    free(folder->numbers);
    folder->numbers = calloc(folder->class_count + 1, sizeof *folder->numbers);
    if (folder->numbers == NULL) {
        return no_memory();
    }
    memcpy(folder->numbers, numbers, folder->class_count * sizeof *numbers);
    return 0;
}

/* ---- opening ------------------------------------------------------------------------------- */

static image_folder *create(void) {
    image_folder *folder = calloc(1, sizeof *folder);
    if (folder == NULL) {
        no_memory();
        return NULL;
    }
    pthread_mutex_init(&folder->lock, NULL);
    folder->next = open_folders;
    open_folders = folder;
    return folder;
}

static int complete(image_folder *folder) {
    folder->broken = calloc(folder->count, sizeof *folder->broken);
    if (folder->broken == NULL) {
        return no_memory();
    }
    size_t looked = folder->count < LOOK_INTO ? folder->count : LOOK_INTO, gray = 0, known = 0;
    for (size_t i = 0; i < looked; i++) {
        int32_t channels = image_file_channels(folder->paths[i * folder->count / looked]);
        known += channels > 0;
        gray += channels == 1;
    }
    folder->channels = known > 0 && gray == known ? 1 : 3;
    return 0;
}

int image_folder_open(const char *path, image_folder **result) {
    image_folder *folder = create();
    *result = NULL;
    if (folder == NULL) {
        return -1;
    }
    size_t length = strlen(path);
    folder->root_length = length + (length > 0 && path[length - 1] != '/');
    int outcome = add_folder(folder, path);
    if (outcome == 0 && folder->count > 0) {
        outcome = find_classes(folder) == 0 ? complete(folder) : -1;
    }
    if (outcome != 0 || folder->count == 0) {
        image_folder_close(folder);
        return outcome;
    }
    *result = folder;
    return 0;
}

int image_folder_from_list(const char *const *paths, size_t count, image_folder **result) {
    image_folder *folder = create();
    int outcome = folder != NULL ? 0 : -1;
    *result = NULL;
    for (size_t i = 0; outcome == 0 && i < count; i++) {
        struct stat about;
        size_t before = folder->count;
        if (stat(paths[i], &about) == 0 && S_ISDIR(about.st_mode)) {
            outcome = add_folder(folder, paths[i]);
            if (outcome == 0 && folder->count == before) {
                complain("%s: there are no JPEG or PNG files in it", paths[i]);
                outcome = -1;
            }
        } else {
            outcome = add_path(folder, paths[i]);
        }
    }
    if (outcome == 0) {
        outcome = complete(folder);
    }
    if (outcome != 0) {
        image_folder_close(folder);
        return -1;
    }
    *result = folder;
    return 0;
}

void image_folder_close(image_folder *folder) {
    if (folder == NULL) {
        return;
    }
    for (image_folder **at = &open_folders; *at != NULL; at = &(*at)->next) {
        if (*at == folder) {
            *at = folder->next;
            break;
        }
    }
    if (folder->broken_count > 0 && !folder->reported) {
        say("%llu of %zu images could not be read and were left out", (unsigned long long)folder->broken_count,
            folder->count);
    }
    for (size_t i = 0; i < folder->count; i++) {
        free(folder->paths[i]);
    }
    for (size_t i = 0; i < folder->class_count; i++) {
        free(folder->classes[i]);
    }
    pthread_mutex_destroy(&folder->lock);
    free(folder->paths);
    free(folder->classes);
    free(folder->labels);
    free(folder->numbers);
    free(folder->broken);
    free(folder);
}

uint64_t image_folder_count(const image_folder *folder) {
    return folder->count;
}

const char *image_folder_path(const image_folder *folder, uint64_t index) {
    return folder->paths[index];
}

size_t image_folder_class_count(const image_folder *folder) {
    return folder->class_count;
}

const char *image_folder_class(const image_folder *folder, size_t number) {
    return folder->classes[number];
}

int32_t image_folder_channels(const image_folder *folder) {
    return folder->channels;
}

void image_folder_set_channels(image_folder *folder, int32_t channels) {
    folder->channels = channels;
}

/* ---- the data set -------------------------------------------------------------------------- */

bool image_folder_broken(const image_folder *folder, uint64_t index) {
    pthread_mutex_t *lock = (pthread_mutex_t *)&folder->lock;
    pthread_mutex_lock(lock);
    bool broken = folder->broken[index];
    pthread_mutex_unlock(lock);
    return broken;
}

uint64_t image_folder_broken_count(const image_folder *folder) {
    return folder->broken_count;
}

/* Names a file the first time that it fails. */
static void mark_broken(image_folder *folder, uint64_t index, const char *why) {
    pthread_mutex_lock(&folder->lock);
    bool stops = image_on_error == ON_ERROR_STOP;
    if (!folder->broken[index] && !(stops && folder->reported)) {
        complain("%s%s: %s", stops ? "" : "left out: ", folder->paths[index], why);
        folder->broken[index] = true;
        folder->broken_count++;
        folder->reported = stops;
    }
    pthread_mutex_unlock(&folder->lock);
}

/* Reads a file that is to be embedded or trained on, which makes it larger or smaller. */
static int read_usual(const char *path, int32_t channels, image_pixels *image, char why[IMAGE_WHY]) {
    if (image_read(path, channels, image, why) != 0) {
        return -1;
    }
    if (image->width / MOST_LONG > image->height || image->height / MOST_LONG > image->width) {
        snprintf(why, IMAGE_WHY, "%zu x %zu pixels: more than %d times as long as wide", image->width, image->height,
                 MOST_LONG);
        image_free(image);
        return -1;
    }
    return 0;
}

static int acquire(void *opaque, uint64_t index, sd_image *view, void **token) {
    image_folder *folder = opaque;
    for (uint64_t tried = 0; tried < folder->count; tried++) {
        uint64_t at = (index + tried) % folder->count;
        char why[IMAGE_WHY];
        image_pixels image;
        if (image_folder_broken(folder, at)) {
            if (image_on_error == ON_ERROR_STOP) {
                return 1;
            }
            continue;
        }
        if (read_usual(folder->paths[at], folder->channels, &image, why) == 0) {
            *view = (sd_image){.pixels = image.pixels,
                               .width = image.width,
                               .height = image.height,
                               .channels = image.channels,
                               .pixel_type = SD_PIXEL_U8};
            *token = image.pixels;
            return 0;
        }
        mark_broken(folder, at, why);
        if (image_on_error == ON_ERROR_STOP) {
            return 1;
        }
    }
    return 2; /* none of them can be read */
}

static void let_go(void *opaque, uint64_t index, void *token) {
    (void)opaque, (void)index;
    free(token);
}

sd_dataset *image_folder_dataset(sd_context *context, image_folder *folder) {
    int32_t *labels = folder->labels;
    if (labels != NULL && folder->numbers != NULL) {
        labels = malloc(folder->count * sizeof *labels);
        for (size_t i = 0; labels != NULL && i < folder->count; i++) {
            labels[i] = folder->numbers[folder->labels[i]];
        }
        if (labels == NULL) {
            no_memory();
            return NULL;
        }
    }
    folder->dataset = NULL;
    sd_status status = sd_dataset_from_callbacks(context, folder->count, acquire, let_go, folder, labels,
                                                 &folder->dataset);
    if (labels != folder->labels) {
        free(labels);
    }
    if (status != SD_OK) {
        failed("cannot open the images", status);
        return NULL;
    }
    return folder->dataset;
}

int images_failed(const sd_dataset *dataset, const char *what, sd_status status) {
    const image_folder *folder = image_folder_of(dataset);
    if (folder == NULL || status != SD_ERR_IO) {
        failed(what, status);
    } else if (!folder->reported) {
        complain("none of the %zu images can be read", folder->count);
    }
    return -1;
}

image_folder *image_folder_of(const sd_dataset *dataset) {
    for (image_folder *folder = open_folders; folder != NULL; folder = folder->next) {
        if (folder->dataset == dataset && dataset != NULL) {
            return folder;
        }
    }
    return NULL;
}
