/* The list beside an index. See index_list.h. The text is
 *     simdino index list 1
 *     KEY<tab>VALUE          weights, student, heads, lenient, mean, std, features, blocks, resize, crop, data, split
 *     images<tab>COUNT
 *     ID<tab>LABEL<tab>NAME  for each of them
 * In texts, tabs, line ends and % are written as % and two hexadecimal digits. */
#define _POSIX_C_SOURCE 200809L
#include "index_list.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "program.h"

#define HEADLINE "simdino index list 1"
#define ENDING   ".list"

static char *copy_text(const char *text) {
    char *copy = malloc(strlen(text) + 1);
    return copy != NULL ? strcpy(copy, text) : NULL;
}

char *index_list_path(const char *path) {
    char folder[4096];
    if (path[0] == '/' || path[0] == '\0' || access(path, F_OK) != 0 || getcwd(folder, sizeof folder) == NULL) {
        return copy_text(path);
    }
    while (path[0] == '.' && path[1] == '/') {
        path += 2 + strspn(path + 2, "/");
    }
    size_t room = strlen(folder) + strlen(path) + 2;
    char *whole = malloc(room);
    if (whole != NULL) {
        snprintf(whole, room, "%s%s%s", folder, strcmp(folder, "/") == 0 ? "" : "/", path);
    }
    return whole;
}

/* Takes over both texts, which may be NULL: memory was short then. */
static int append(index_list *list, int64_t id, char *label, char *name) {
    if (list->count == list->room) {
        size_t room = list->room > 0 ? 2 * list->room : 256;
        index_entry *entries = realloc(list->entries, room * sizeof *entries);
        list->entries = entries != NULL ? entries : list->entries;
        list->room = entries != NULL ? room : list->room;
    }
    if (list->count == list->room || label == NULL || name == NULL) {
        free(label);
        free(name);
        complain("out of memory");
        return -1;
    }
    list->entries[list->count++] = (index_entry){id, label, name};
    return 0;
}

int index_list_add(index_list *list, int64_t id, const char *label, const char *name) {
    return append(list, id, copy_text(label), index_list_path(name));
}

const index_entry *index_list_find(const index_list *list, int64_t id) {
    size_t low = 0, high = list->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (list->entries[middle].id < id) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < list->count && list->entries[low].id == id ? &list->entries[low] : NULL;
}

void index_list_free(index_list *list) {
    for (size_t i = 0; i < list->count; i++) {
        free(list->entries[i].label);
        free(list->entries[i].name);
    }
    free(list->entries);
    free(list->weights);
    free(list->data);
    *list = (index_list){0};
}

/* ---- writing ------------------------------------------------------------------------------- */

static void write_text(output *file, const char *text) {
    for (; *text != '\0'; text++) {
        char code[4];
        if (*text == '\t' || *text == '\n' || *text == '\r' || *text == '%') {
            snprintf(code, sizeof code, "%%%02x", (unsigned char)*text);
            output_write(file, code, 3);
        } else {
            output_write(file, text, 1);
        }
    }
}

static void write_value(output *file, const char *key, const char *value) {
    write_text(file, key);
    output_write(file, "\t", 1);
    write_text(file, value);
    output_write(file, "\n", 1);
}

static void write_number(output *file, const char *key, long long value) {
    char text[32];
    snprintf(text, sizeof text, "%lld", value);
    write_value(file, key, text);
}

/* Comma separated; nothing where there are none. */
static void write_reals(output *file, const char *key, const double *numbers, size_t count) {
    char text[SD_MAX_CHANNELS * 32];
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%.17g", i > 0 ? "," : "", numbers[i]);
    }
    if (count > 0) {
        write_value(file, key, text);
    }
}

static char *list_path(const char *index_path) {
    size_t room = strlen(index_path) + sizeof ENDING;
    char *path = malloc(room);
    if (path == NULL) {
        complain("out of memory");
        return NULL;
    }
    snprintf(path, room, "%s%s", index_path, ENDING);
    return path;
}

output *index_list_write(const index_list *list, const char *index_path) {
    char *path = list_path(index_path);
    output *file = path != NULL ? output_open(path) : NULL;
    free(path);
    if (file == NULL) {
        return NULL;
    }
    output_write(file, HEADLINE "\n", strlen(HEADLINE) + 1);
    if (list->net.weights != NULL) {
        write_value(file, "weights", list->net.weights);
        write_number(file, "student", list->net.student);
        write_number(file, "heads", list->net.heads);
        write_number(file, "lenient", list->net.lenient);
        write_reals(file, "mean", list->net.mean, list->net.mean_count);
        write_reals(file, "std", list->net.std, list->net.std_count);
        write_value(file, "features", network_feature_names[list->net.features]);
        write_number(file, "blocks", list->net.blocks);
        write_number(file, "resize", list->net.resize);
        write_number(file, "crop", list->net.crop);
    }
    write_value(file, "data", list->data);
    write_number(file, "split", list->split);
    write_number(file, "images", (long long)list->count);
    for (size_t i = 0; i < list->count; i++) {
        char id[32];
        output_write(file, id, (size_t)snprintf(id, sizeof id, "%lld\t", (long long)list->entries[i].id));
        write_value(file, list->entries[i].label, list->entries[i].name);
    }
    if (output_sync(file) != 0) {
        output_discard(file);
        return NULL;
    }
    return file;
}

/* ---- reading ------------------------------------------------------------------------------- */

/* Undoes write_text in place. */
static void read_text(char *text) {
    char *to = text;
    for (const char *at = text; *at != '\0'; at++) {
        unsigned code = 0;
        if (*at == '%' && sscanf(at + 1, "%2x", &code) == 1 && at[1] != '\0' && at[2] != '\0') {
            *to++ = (char)code;
            at += 2;
        } else {
            *to++ = *at;
        }
    }
    *to = '\0';
}

/* The count of numbers, 0 when they are not what write_reals() wrote. */
static size_t read_reals(const char *text, double *numbers) {
    for (size_t count = 0; count < SD_MAX_CHANNELS; text++) {
        char *end = NULL;
        numbers[count] = strtod(text, &end);
        if (end == text || !isfinite(numbers[count++]) || (*end != ',' && *end != '\0')) {
            return 0;
        }
        text = end;
        if (*end == '\0') {
            return count;
        }
    }
    return 0;
}

static bool take_value(index_list *list, const char *key, const char *value) {
    char *end = NULL;
    long number = strtol(value, &end, 10);
    bool whole = end != value && *end == '\0' && number >= -1 && number <= 65536; /* as the options have it */
    if (strcmp(key, "weights") == 0) {
        free(list->weights);
        list->net.weights = list->weights = copy_text(value);
        return list->weights != NULL;
    }
    if (strcmp(key, "data") == 0) {
        free(list->data);
        list->data = copy_text(value);
        return list->data != NULL;
    }
    if (strcmp(key, "features") == 0) {
        for (int32_t i = 0; network_feature_names[i] != NULL; i++) {
            if (strcmp(network_feature_names[i], value) == 0) {
                list->net.features = i;
                return true;
            }
        }
        return false;
    }
    if (strcmp(key, "mean") == 0) {
        return (list->net.mean_count = read_reals(value, list->net.mean)) > 0;
    }
    if (strcmp(key, "std") == 0) {
        return (list->net.std_count = read_reals(value, list->net.std)) > 0;
    }
    if (strcmp(key, "heads") == 0) {
        list->net.heads = (int32_t)number;
    } else if (strcmp(key, "lenient") == 0) {
        list->net.lenient = number == 1;
    } else if (strcmp(key, "student") == 0) {
        list->net.student = number == 1;
    } else if (strcmp(key, "blocks") == 0) {
        list->net.blocks = (int32_t)number;
    } else if (strcmp(key, "resize") == 0) {
        list->net.resize = (int32_t)number;
    } else if (strcmp(key, "crop") == 0) {
        list->net.crop = (int32_t)number;
    } else if (strcmp(key, "split") == 0) {
        list->split = (int32_t)number;
    } else {
        return false;
    }
    return whole;
}

/* ID<tab>LABEL<tab>NAME */
static bool take_entry(index_list *list, char *line) {
    char *end = NULL, *label = strchr(line, '\t');
    char *name = label != NULL ? strchr(label + 1, '\t') : NULL;
    errno = 0;
    long long id = strtoll(line, &end, 10);
    if (name == NULL || end != label || end == line || errno != 0 || id < 0 ||
        (list->count > 0 && id <= list->entries[list->count - 1].id)) {
        return false;
    }
    *label++ = '\0';
    *name++ = '\0';
    read_text(label);
    read_text(name);
    return append(list, id, copy_text(label), copy_text(name)) == 0;
}

static bool read_lines(FILE *stream, index_list *list) {
    char *line = NULL;
    size_t room = 0;
    bool in_images = false, good = true;
    unsigned long long images = 0;
    for (size_t number = 0; good; number++) {
        ssize_t length = getline(&line, &room, stream);
        if (length < 0) {
            break;
        }
        good = length > 0 && line[length - 1] == '\n' && strlen(line) == (size_t)length;
        line[good ? length - 1 : 0] = '\0';
        char *tab = strchr(line, '\t');
        if (!good) {
            break;
        }
        if (number == 0) {
            good = strcmp(line, HEADLINE) == 0;
        } else if (in_images) {
            good = take_entry(list, line);
        } else if (tab == NULL) {
            good = false;
        } else {
            *tab++ = '\0';
            read_text(tab);
            in_images = strcmp(line, "images") == 0;
            if (in_images) {
                good = sscanf(tab, "%llu", &images) == 1;
            } else {
                good = take_value(list, line, tab);
            }
        }
    }
    free(line);
    return good && in_images && images == list->count && list->data != NULL && !ferror(stream);
}

int index_list_read(const char *index_path, index_list *list) {
    *list = (index_list){.net = NETWORK_OPTIONS_DEFAULT};
    char *path = list_path(index_path);
    if (path == NULL) {
        return -1;
    }
    FILE *stream = fopen(path, "rb");
    int result = -1;
    if (stream == NULL && errno == ENOENT) {
        result = 1;
    } else if (stream == NULL) {
        complain("cannot open %s: %s", path, strerror(errno));
    } else if (read_lines(stream, list)) {
        result = 0;
    } else {
        complain("%s: not the list of an index, or damaged", path);
    }
    if (stream != NULL) {
        fclose(stream);
    }
    if (result != 0) {
        index_list_free(list);
        *list = (index_list){.net = NETWORK_OPTIONS_DEFAULT};
    }
    free(path);
    return result;
}
