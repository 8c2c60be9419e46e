/* The teacher: an exponential moving average of the student's weights. */
#include "optim/optim.h"

typedef struct ema_work {
    float *teacher;
    const float *student;
    size_t count;
    float momentum, rest;
} ema_work;

static void update_block(void *opaque, size_t index, size_t thread) {
    (void)thread;
    const ema_work *work = opaque;
    size_t begin = index * SD_OPTIM_BLOCK;
    sd_ema_block(work->momentum, work->rest, work->teacher + begin, work->student + begin,
                 sd_size_min(SD_OPTIM_BLOCK, work->count - begin));
}

SD_API sd_status sd_ema_update(sd_context *context, float *teacher, const float *student, size_t count,
                               double momentum) {
    SD_REQUIRE(teacher, SD_ERR_ARGUMENT, "teacher is NULL");
    SD_REQUIRE(student, SD_ERR_ARGUMENT, "student is NULL");
    SD_REQUIRE(momentum >= 0 && momentum <= 1, SD_ERR_ARGUMENT, "momentum is %g: it must be in [0, 1]", momentum);
    if (count == 0 || momentum == 1)
        return SD_OK;
    ema_work work = {
        .teacher = teacher,
        .student = student,
        .count = count,
        .momentum = (float)momentum,
        .rest = (float)(1.0 - momentum),
    };
    return sd_run(context, update_block, &work, sd_size_ceil(count, SD_OPTIM_BLOCK));
}
