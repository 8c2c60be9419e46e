#define _XOPEN_SOURCE 700
#define _FILE_OFFSET_BITS 64
#include "io/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NAME_ATTEMPTS 100
#define SUFFIX_SIZE 48 /* ".tmp-", a process id, a number */

struct sd_atomic_file {
    sd_context *context;
    char *path;      /* final name */
    char *temporary; /* "" until the file exists */
    int descriptor;
};

static void release(sd_atomic_file *file) {
    if (file->descriptor >= 0)
        close(file->descriptor);
    sd_release(file->context, file->temporary);
    sd_release(file->context, file->path);
    sd_release(file->context, file);
}

void sd_atomic_file_discard(sd_atomic_file *file) {
    if (!file)
        return;
    if (file->temporary && file->temporary[0])
        unlink(file->temporary);
    release(file);
}

/* A link is followed, so that the file behind it is replaced and not the link. */
static sd_status find_target(sd_atomic_file *file, const char *path, struct stat *about, bool *exists) {
    struct stat link;
    char *resolved = NULL;
    *exists = false;
    if (lstat(path, &link) != 0) {
        if (errno != ENOENT)
            return sd_fail_system(path, "write", errno);
    } else {
        if (stat(path, about) != 0)
            return sd_fail_system(path, "write", errno); /* a link that leads nowhere */
        SD_REQUIRE(S_ISREG(about->st_mode), SD_ERR_IO, "%s: cannot write: it exists and is not a regular file", path);
        *exists = true;
        if (S_ISLNK(link.st_mode) && !(resolved = realpath(path, NULL)))
            return sd_fail_system(path, "write", errno);
    }
    file->path = sd_copy_text(file->context, resolved ? resolved : path);
    free(resolved);
    return file->path ? SD_OK : SD_ERR_MEMORY;
}

/* Creates a file of a name that does not exist yet. */
static sd_status create_temporary(sd_atomic_file *file) {
    size_t length = strlen(file->path);
    file->temporary = SD_NEW_ARRAY(file->context, char, length + SUFFIX_SIZE);
    if (!file->temporary)
        return SD_ERR_MEMORY;
    struct timespec now = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    int code = EEXIST;
    for (unsigned attempt = 0; attempt < NAME_ATTEMPTS && (code == EEXIST || code == EINTR); attempt++) {
        memcpy(file->temporary, file->path, length);
        snprintf(file->temporary + length, SUFFIX_SIZE, ".tmp-%ld-%lx", (long)getpid(),
                 (unsigned long)now.tv_nsec + attempt);
        file->descriptor = open(file->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (file->descriptor >= 0)
            return SD_OK;
        code = errno;
    }
    file->temporary[0] = '\0';
    return sd_fail_system(file->path, "create", code);
}

sd_status sd_atomic_file_open(sd_context *context, const char *path, sd_atomic_file **out) {
    SD_REQUIRE(path, SD_ERR_ARGUMENT, "path is NULL");
    SD_REQUIRE(path[0], SD_ERR_ARGUMENT, "path is empty");
    sd_status status = SD_OK;
    struct stat about;
    bool exists;
    sd_atomic_file *file = SD_NEW(context, sd_atomic_file);
    if (!file)
        return SD_ERR_MEMORY;
    file->context = context;
    file->descriptor = -1;
    SD_TRY(find_target(file, path, &about, &exists));
    SD_TRY(create_temporary(file));
    if (exists && fchmod(file->descriptor, about.st_mode & 0777) != 0) {
        status = sd_fail_system(file->temporary, "set the permissions", errno);
        goto cleanup;
    }
    *out = file;
    return SD_OK;
cleanup:
    sd_atomic_file_discard(file);
    return status;
}

sd_status sd_atomic_file_write(sd_atomic_file *file, uint64_t position, const void *bytes, size_t count) {
    size_t done = 0;
    while (done < count) {
        size_t piece = sd_size_min(count - done, (size_t)1 << 30);
        ssize_t put = pwrite(file->descriptor, (const char *)bytes + done, piece, (off_t)(position + done));
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return sd_fail_system(file->path, "write", put < 0 ? errno : EIO);
        done += (size_t)put;
    }
    return SD_OK;
}

/* Without this the new name may be lost in a power failure. `path` is cut down to its folder. File systems that cannot
 * sync one say EINVAL, and a folder may be writable but not readable. */
static sd_status sync_folder(char *path, const char *culprit) {
    char *slash = strrchr(path, '/');
    if (slash)
        slash[slash == path] = '\0';
    int folder = open(slash ? path : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int code = folder < 0 || fsync(folder) != 0 ? errno : 0;
    if (folder >= 0)
        close(folder);
    return code == 0 || code == EINVAL || code == EACCES ? SD_OK : sd_fail_system(culprit, "sync the folder", code);
}

static sd_status sync_and_close(sd_atomic_file *file) {
    if (fsync(file->descriptor) != 0)
        return sd_fail_system(file->path, "sync", errno);
    int result = close(file->descriptor); /* network file systems report a full disk here */
    file->descriptor = -1;
    return result == 0 || errno == EINTR ? SD_OK : sd_fail_system(file->path, "close", errno);
}

sd_status sd_atomic_file_commit(sd_atomic_file *file) {
    sd_status status = SD_OK;
    SD_TRY(sync_and_close(file));
    if (rename(file->temporary, file->path) != 0) {
        status = sd_fail_system(file->path, "rename the finished file", errno);
        goto cleanup;
    }
    status = sync_folder(file->temporary, file->path);
    file->temporary[0] = '\0'; /* nothing is left to remove */
cleanup:
    sd_atomic_file_discard(file);
    return status;
}
