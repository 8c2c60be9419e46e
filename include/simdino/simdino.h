/* simdino.h - all of libsimdino. See base.h for the rules that hold everywhere, train.h to pretrain, embed.h to query
 * features, loss.h for the coding rate alone. */
#ifndef SIMDINO_SIMDINO_H
#define SIMDINO_SIMDINO_H

#include <simdino/base.h>
#include <simdino/data.h>
#include <simdino/embed.h>
#include <simdino/eval.h>
#include <simdino/image.h>
#include <simdino/io.h>
#include <simdino/loss.h>
#include <simdino/model.h>
#include <simdino/optim.h>
#include <simdino/train.h>

#endif
