/* Opening data sets. See sources.h. Files are told by their content, files of one set by their usual names. */
#define _POSIX_C_SOURCE 200809L
#include "sources.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

#include "image_file.h"
#include "program.h"

#define PATH_ROOM  4096
#define MOST_FILES 64

static const char *const fashion_classes[] = {"T-shirt", "Trouser", "Pullover", "Dress", "Coat",
                                              "Sandal",  "Shirt",   "Sneaker",  "Bag",   "Ankle boot"};
static const char *const digit_classes[] = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"};
static const char *const cifar_classes[] = {"airplane", "automobile", "bird",  "cat",  "deer",
                                            "dog",      "frog",       "horse", "ship", "truck"};

/* ---- paths --------------------------------------------------------------------------------- */

static bool is_folder(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

static bool is_file(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 && !S_ISDIR(status.st_mode);
}

static bool join(char *to, const char *folder, const char *name) {
    size_t length = strlen(folder);
    const char *slash = length > 0 && folder[length - 1] == '/' ? "" : "/";
    return snprintf(to, PATH_ROOM, "%s%s%s", folder, slash, name) < PATH_ROOM;
}

/* Finds the file FOLDER/KIND-images-idx3-ubyte (or labels-idx1), with any of the endings in use. */
static bool find_idx(char *to, const char *folder, const char *kind, bool labels) {
    static const struct {
        char separator;
        const char *ending;
    } forms[] = {{'-', ""}, {'-', ".gz"}, {'.', ""}, {'.', ".gz"}};
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        for (int rank = labels ? 1 : 3; rank <= (labels ? 1 : 4); rank++) {
            char name[128];
            snprintf(name, sizeof name, "%s-%s%cidx%d-ubyte%s", kind, labels ? "labels" : "images", forms[i].separator,
                     rank, forms[i].ending);
            if (join(to, folder, name) && is_file(to)) {
                return true;
            }
        }
    }
    return false;
}

/* Replaces the last occurrence of `from` in `path`; false when there is none. */
static bool replace(const char *path, const char *from, const char *with, char *to) {
    const char *last = NULL;
    for (const char *at = strstr(path, from); at != NULL; at = strstr(at + 1, from)) {
        last = at;
    }
    return last != NULL &&
           snprintf(to, PATH_ROOM, "%.*s%s%s", (int)(last - path), path, with, last + strlen(from)) < PATH_ROOM;
}

/* ---- kinds of files ------------------------------------------------------------------------ */

typedef enum file_kind { FILE_MISSING, FILE_IDX, FILE_CIFAR, FILE_UNKNOWN } file_kind;

static file_kind kind_of_file(const char *path) {
    struct stat status;
    if (stat(path, &status) != 0) {
        return FILE_MISSING;
    }
    if (!S_ISREG(status.st_mode)) {
        return FILE_UNKNOWN; /* a pipe would make the program wait */
    }
    gzFile file = gzopen(path, "rb"); /* reads plain files as well */
    if (file == NULL) {
        return FILE_MISSING;
    }
    unsigned char head[4];
    int length = gzread(file, head, 4);
    gzclose(file);
    if (length == 4 && head[0] == 0 && head[1] == 0 && head[2] == 8 && head[3] >= 1 && head[3] <= 4) {
        return FILE_IDX;
    }
    return status.st_size > 0 && status.st_size % 3073 == 0 && length == 4 && head[0] <= 9 ? FILE_CIFAR : FILE_UNKNOWN;
}

static sd_dataset *opened(const char *path, sd_status status, sd_dataset *dataset) {
    if (status != SD_OK) {
        failed(path, status);
        return NULL;
    }
    return dataset;
}

static sd_dataset *open_idx(sd_context *context, const char *images, const char *labels) {
    sd_dataset *dataset = NULL;
    sd_status status = sd_dataset_open_idx(context, images, labels, &dataset);
    return opened(images, status, dataset);
}

/* ---- folders and files --------------------------------------------------------------------- */

static int open_idx_folder(sd_context *context, const char *folder, source *data) {
    char images[PATH_ROOM], labels[PATH_ROOM];
    if (!find_idx(images, folder, "train", false)) {
        return 1;
    }
    data->train = open_idx(context, images, find_idx(labels, folder, "train", true) ? labels : NULL);
    if (data->train == NULL) {
        return -1;
    }
    if (find_idx(images, folder, "t10k", false) || find_idx(images, folder, "test", false)) {
        bool found = find_idx(labels, folder, "t10k", true) || find_idx(labels, folder, "test", true);
        data->test = open_idx(context, images, found ? labels : NULL);
        if (data->test == NULL) {
            return -1;
        }
    }
    return 0;
}

static int open_cifar_folder(sd_context *context, const char *folder, source *data) {
    char paths[6][PATH_ROOM];
    const char *list[6];
    size_t count = 0;
    for (int i = 1; i <= 5; i++) {
        char name[32];
        snprintf(name, sizeof name, "data_batch_%d.bin", i);
        if (join(paths[count], folder, name) && is_file(paths[count])) {
            list[count] = paths[count];
            count++;
        }
    }
    if (count == 0) {
        return 1;
    }
    sd_status status = sd_dataset_open_cifar10(context, list, count, &data->train);
    if (opened(folder, status, data->train) == NULL) {
        return -1;
    }
    char test[PATH_ROOM];
    const char *test_list[1] = {test};
    if (join(test, folder, "test_batch.bin") && is_file(test)) {
        status = sd_dataset_open_cifar10(context, test_list, 1, &data->test);
        if (opened(test, status, data->test) == NULL) {
            return -1;
        }
    }
    return 0;
}

/* ---- folders of images --------------------------------------------------------------------- */

/* One folder of images: 0, 1 when there are none, or -1. */
static int open_images(const char *path, image_folder **images) {
    int result = is_folder(path) ? image_folder_open(path, images) : 0;
    return result == 0 && *images == NULL ? 1 : result;
}

/* Classes of training and test images get common numbers: those of training, then those that only the test has. */
static int join_classes(source *data) {
    size_t count = image_folder_class_count(data->train_images), tests = 0;
    tests = data->test_images != NULL ? image_folder_class_count(data->test_images) : 0;
    free(data->own_class_names);
    data->own_class_names = NULL;
    data->class_names = NULL;
    if (count == 0) {
        return 0;
    }
    const char **names = calloc(count + tests, sizeof *names);
    int32_t *numbers = calloc(tests + 1, sizeof *numbers);
    data->own_class_names = names;
    data->class_names = names;
    if (names == NULL || numbers == NULL) {
        free(numbers);
        complain("out of memory");
        return -1;
    }
    for (size_t i = 0; i < count; i++) {
        names[i] = image_folder_class(data->train_images, i);
    }
    for (size_t i = 0; i < tests; i++) {
        const char *name = image_folder_class(data->test_images, i);
        size_t at = 0;
        while (at < count && strcmp(names[at], name) != 0) {
            at++;
        }
        if (at == count) {
            names[count++] = name;
        }
        numbers[i] = (int32_t)at;
    }
    int result = data->test_images != NULL ? image_folder_renumber(data->test_images, numbers) : 0;
    free(numbers);
    return result;
}

static int make_datasets(sd_context *context, source *data) {
    if (join_classes(data) != 0 || (data->train = image_folder_dataset(context, data->train_images)) == NULL) {
        return -1;
    }
    if (data->test_images != NULL) {
        image_folder_set_channels(data->test_images, image_folder_channels(data->train_images));
        data->test = image_folder_dataset(context, data->test_images);
        return data->test != NULL ? 0 : -1;
    }
    return 0;
}

/* "train" is the name of a class, too: without test images, and where it is not the only folder of images. 0 or -1. */
static int train_or_class(const char *folder, source *data) {
    image_folder *all = NULL;
    if (open_images(folder, &all) < 0) {
        return -1;
    }
    if (all != NULL && image_folder_class_count(all) > 1) {
        say("%s: train is taken for one of %zu classes, as there are no folders test or val", folder,
            image_folder_class_count(all));
        image_folder_close(data->train_images);
        data->train_images = all;
    } else {
        image_folder_close(all);
    }
    return 0;
}

static int open_image_folder(sd_context *context, const char *folder, source *data) {
    static const char *const tests[] = {"test", "val", "valid", "validation"};
    char train[PATH_ROOM], test[PATH_ROOM];
    int result = join(train, folder, "train") ? open_images(train, &data->train_images) : 1;
    if (result == 0) {
        for (size_t i = 0; data->test_images == NULL && i < sizeof tests / sizeof tests[0]; i++) {
            if (join(test, folder, tests[i]) && open_images(test, &data->test_images) < 0) {
                return -1;
            }
        }
        result = data->test_images == NULL ? train_or_class(folder, data) : 0;
    } else if (result > 0) {
        result = open_images(folder, &data->train_images);
    }
    return result == 0 ? make_datasets(context, data) : result;
}

static int open_image_file(sd_context *context, const char *path, source *data) {
    int result = image_folder_from_list(&path, 1, &data->train_images);
    return result == 0 ? make_datasets(context, data) : result;
}

static int open_folder(sd_context *context, const char *folder, source *data) {
    int result = open_idx_folder(context, folder, data);
    if (result > 0) {
        result = open_cifar_folder(context, folder, data);
    }
    char inner[PATH_ROOM];
    if (result > 0 && join(inner, folder, "cifar-10-batches-bin") && is_folder(inner)) {
        result = open_cifar_folder(context, inner, data);
    }
    if (result > 0) {
        result = open_image_folder(context, folder, data);
    }
    if (result > 0) {
        complain("%s: found neither train-images-idx3-ubyte (MNIST, Fashion-MNIST; plain or .gz), nor data_batch_1.bin "
                 "(CIFAR-10), nor JPEG or PNG files (%s of which can be read by this program)",
                 folder, image_kinds());
        result = -1;
    }
    return result;
}

static int open_idx_file(sd_context *context, const char *path, source *data) {
    char labels[PATH_ROOM], middle[PATH_ROOM], test[PATH_ROOM], test_labels[PATH_ROOM];
    bool has_labels = replace(path, "images", "labels", middle) &&
                      (replace(middle, "idx3", "idx1", labels) || replace(middle, "idx4", "idx1", labels)) &&
                      is_file(labels);
    data->train = open_idx(context, path, has_labels ? labels : NULL);
    if (data->train == NULL) {
        return -1;
    }
    if (replace(path, "train-", "t10k-", test) && is_file(test)) {
        bool has_test_labels = has_labels && replace(labels, "train-", "t10k-", test_labels) && is_file(test_labels);
        data->test = open_idx(context, test, has_test_labels ? test_labels : NULL);
        return data->test != NULL ? 0 : -1;
    }
    return 0;
}

static int open_cifar_files(sd_context *context, const char *paths, source *data) {
    char text[PATH_ROOM];
    const char *list[MOST_FILES];
    size_t count = 0;
    if (snprintf(text, sizeof text, "%s", paths) >= (int)sizeof text) {
        complain("--data is longer than %d characters", PATH_ROOM - 1);
        return -1;
    }
    for (char *at = text; at != NULL;) {
        char *comma = is_file(at) ? NULL : strchr(at, ',');
        if (comma != NULL) {
            *comma = '\0';
        }
        if (count == MOST_FILES) {
            complain("--data names more than %d files", MOST_FILES);
            return -1;
        }
        list[count++] = at;
        at = comma != NULL ? comma + 1 : NULL;
    }
    sd_status status = sd_dataset_open_cifar10(context, list, count, &data->train);
    return opened(paths, status, data->train) != NULL ? 0 : -1;
}

static int open_path(sd_context *context, const char *path, source *data) {
    if (is_folder(path)) {
        return open_folder(context, path, data);
    }
    char first[PATH_ROOM];
    snprintf(first, sizeof first, "%s", path);
    if (!is_file(path) && strchr(first, ',') != NULL) {
        *strchr(first, ',') = '\0';
    }
    switch (kind_of_file(first)) {
    case FILE_MISSING: complain("cannot open %s: %s", first, strerror(errno != 0 ? errno : ENOENT)); return -1;
    case FILE_IDX: return open_idx_file(context, path, data);
    case FILE_CIFAR: return open_cifar_files(context, path, data);
    case FILE_UNKNOWN: break;
    }
    if (image_name(path)) {
        return open_image_file(context, path, data);
    }
    complain("%s: neither an IDX file (which begins with the bytes 0 0 8 3) nor CIFAR-10 records (of 3073 bytes), nor a "
             "JPEG or PNG file by its name",
             first);
    return -1;
}

/* ---- the whole ----------------------------------------------------------------------------- */

/* Name and class names, by the form of the images and the words in the path. */
static void recognise(const char *path, source *data) {
    data->name = data->channels == 1 ? "grey images" : "images";
    if (data->train_images != NULL) {
        return;
    }
    if (data->channels == 3 && data->width == 32 && data->height == 32) {
        data->name = "CIFAR-10";
        data->class_names = cifar_classes;
    } else if (strstr(path, "fashion") != NULL || strstr(path, "Fashion") != NULL) {
        data->name = "Fashion-MNIST";
        data->class_names = fashion_classes;
    } else if (strstr(path, "mnist") != NULL || strstr(path, "MNIST") != NULL) {
        data->name = "MNIST";
        data->class_names = digit_classes;
    }
    if (data->class_names != NULL &&
        (source_classes(data->train) > 10 || (data->test != NULL && source_classes(data->test) > 10))) {
        data->class_names = NULL;
    }
}

int source_open(sd_context *context, const char *path, const char *test_path, source *data) {
    *data = (source){0};
    errno = 0;
    int result = open_path(context, path, data);
    if (result == 0 && test_path != NULL) {
        source other = {0};
        result = open_path(context, test_path, &other);
        if (result == 0) {
            sd_dataset_destroy(data->test);
            /* A folder has test images of its own; a file is all test images. */
            data->test = is_folder(test_path) && other.test != NULL ? other.test : other.train;
            image_folder_close(data->test_images);
            if (data->test == other.test) {
                data->test_images = other.test_images;
                other.test = NULL;
                other.test_images = NULL;
            } else {
                data->test_images = other.train_images;
                other.train = NULL;
                other.train_images = NULL;
            }
            if (data->train_images != NULL && data->test_images != NULL) {
                /* The labels were copied into the data sets, which are made anew with common numbers. */
                sd_dataset_destroy(data->train);
                sd_dataset_destroy(data->test);
                data->train = data->test = NULL;
                result = make_datasets(context, data);
            } else if (data->test_images != NULL) {
                image_folder_set_channels(data->test_images, 3);
            } else if (data->train_images != NULL && source_classes(data->test) > source_classes(data->train)) {
                data->class_names = NULL; /* they are of the training images only */
            }
        }
        source_close(&other);
    }
    if (result == 0) {
        sd_image image;
        void *token = NULL;
        sd_status status = sd_dataset_acquire(data->train, 0, &image, &token);
        if (status != SD_OK) {
            result = images_failed(data->train, path, status);
        } else {
            data->channels = image.channels;
            data->width = image.width;
            data->height = image.height;
            sd_dataset_release(data->train, 0, token);
            recognise(path, data);
        }
    }
    if (result != 0) {
        source_close(data);
    }
    return result;
}

void source_close(source *data) {
    sd_dataset_destroy(data->train);
    sd_dataset_destroy(data->test);
    image_folder_close(data->train_images);
    image_folder_close(data->test_images);
    free(data->own_class_names);
    *data = (source){0};
}

void source_set_channels(source *data, int32_t channels) {
    image_folder *const folders[] = {data->train_images, data->test_images};
    for (size_t i = 0; i < 2; i++) {
        if (folders[i] != NULL && (channels == 1 || channels == 3)) {
            image_folder_set_channels(folders[i], channels);
            data->channels = channels;
        }
    }
}

int32_t source_classes(const sd_dataset *dataset) {
    const int32_t *labels = sd_dataset_labels(dataset);
    int32_t largest = -1;
    for (uint64_t i = 0; labels != NULL && i < sd_dataset_count(dataset); i++) {
        if (labels[i] > largest) {
            largest = labels[i];
        }
    }
    return largest + 1;
}
