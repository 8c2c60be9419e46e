#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64
#include "io/file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

struct sd_input_file {
    sd_context *context;
    char *path;
    int descriptor;
    uint64_t size;
};

/* strerror() follows the locale and is not thread-safe. */
static const char *reason(int code) {
    switch (code) {
    case EACCES:
    case EPERM: return "permission denied";
    case EDQUOT: return "disk quota exceeded";
    case EFBIG: return "file too large";
    case EINVAL: return "not possible there";
    case EIO: return "the device failed";
    case EISDIR: return "it is a folder";
    case ELOOP: return "too many symbolic links";
    case EMFILE:
    case ENFILE: return "too many open files";
    case ENAMETOOLONG: return "name too long";
    case ENOENT: return "no such file or folder";
    case ENOMEM: return "out of memory";
    case ENOSPC: return "no space left";
    case ENOTDIR: return "a part of the path is not a folder";
    case EROFS: return "read-only file system";
    default: return NULL;
    }
}

sd_status sd_fail_system(const char *path, const char *what, int code) {
    const char *text = reason(code);
    if (text)
        return sd_fail(SD_ERR_IO, "%s: cannot %s: %s", path, what, text);
    return sd_fail(SD_ERR_IO, "%s: cannot %s: system error %d", path, what, code);
}

sd_status sd_input_file_open(sd_context *context, const char *path, sd_input_file **out) {
    SD_REQUIRE(path, SD_ERR_ARGUMENT, "path is NULL");
    sd_status status = SD_OK;
    sd_input_file *file = SD_NEW(context, sd_input_file);
    if (!file)
        return SD_ERR_MEMORY;
    file->context = context;
    file->descriptor = -1;
    file->path = sd_copy_text(context, path);
    if (!file->path) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    do /* O_NONBLOCK: a pipe must not make the call wait for a writer */
        file->descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    while (file->descriptor < 0 && errno == EINTR);
    struct stat about;
    if (file->descriptor < 0 || fstat(file->descriptor, &about) != 0) {
        status = sd_fail_system(path, "open", errno);
        goto cleanup;
    }
    SD_EXPECT(S_ISREG(about.st_mode), SD_ERR_IO, "%s: cannot read: not a regular file", path);
    file->size = (uint64_t)about.st_size;
    *out = file;
    return SD_OK;
cleanup:
    sd_input_file_close(file);
    return status;
}

void sd_input_file_close(sd_input_file *file) {
    if (!file)
        return;
    if (file->descriptor >= 0)
        close(file->descriptor);
    sd_release(file->context, file->path);
    sd_release(file->context, file);
}

uint64_t sd_input_file_size(const sd_input_file *file) { return file->size; }

const char *sd_input_file_path(const sd_input_file *file) { return file->path; }

sd_status sd_input_file_read(const sd_input_file *file, uint64_t position, void *bytes, size_t count) {
    size_t done = 0;
    while (done < count) {
        size_t piece = sd_size_min(count - done, (size_t)1 << 30);
        ssize_t got = pread(file->descriptor, (char *)bytes + done, piece, (off_t)(position + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return sd_fail_system(file->path, "read", errno);
        SD_REQUIRE(got > 0, SD_ERR_FORMAT, "%s: truncated: it ends at byte %llu", file->path,
                   (unsigned long long)(position + done));
        done += (size_t)got;
    }
    return SD_OK;
}
